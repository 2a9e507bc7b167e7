"""Packets on a second kernel: what the kernel of a test machine may lack."""
