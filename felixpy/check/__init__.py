"""Preflight: what of this node, its kernel and its stream keeps felixpy from doing its work, and what to do about it.

``facts`` reads, ``judge`` decides. Invariant: reads only, each fact by itself: what cannot be read is a finding, and
never hides another one. Needs no running agent.
"""
