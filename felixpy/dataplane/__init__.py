"""Kernel tables: what is wanted, what the kernel holds, and the one loop that makes them equal."""
