"""Addresses for workloads: a pure allocator of blocks, and the stores that keep what it gives."""
