"""The running agent: composition, loop and life cycle, configuration, what is told of it, the process.

It ties sources, calculation and dataplane together. It decides nothing about resources or the kernel.
"""
