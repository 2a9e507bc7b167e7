"""What becomes of one packet on this node: ``facts`` reads the kernel, ``walk`` decides, ``report`` tells.

Invariant: reads only, and never says more than it knows: what a rule asks that cannot be judged here is named, with
what it would change. Must never take the stream's or the agent's word for what the kernel holds.
"""
