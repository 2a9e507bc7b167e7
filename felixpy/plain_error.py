"""Errors that are meant for people."""

from __future__ import annotations


class PlainError(Exception):
    """Something that can be expected to go wrong. Its text is one sentence: what, where, and what to do next."""
