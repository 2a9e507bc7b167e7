"""What a change would do to this node before it is made: kernel, classes, connections.

    command ──change──► control socket, stream ──► a copy of the agent (``beside``) ──► both states (``outlook``)

Invariant: nothing is written, nowhere. The agent itself calculates nothing of it: its copy does, and ends.
"""
