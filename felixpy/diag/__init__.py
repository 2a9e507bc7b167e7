"""One archive with everything that is asked for when felixpy does not work: for a bug report, or for later.

Invariant: reads only; every part stands alone, and one that cannot be had is a line in ``missing.txt``. Settings come
without secrets; payloads of the stream are not in it.
"""
