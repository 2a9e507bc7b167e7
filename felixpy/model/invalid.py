"""What the parsers say of input that they cannot use, and of input that they pass over.

Invariant: messages are one line, and whatever they quote from outside is escaped and cut.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from felixpy.model.resources import ResourceKey

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises for input that it cannot decode or convert. Before 0.20 its own errors are no ValueErrors; which
class stands for what (text that is not UTF-8, say) differs between releases, and decides nothing here."""

NOT_KNOWN = "is not known to felixpy"
"""What is said of a field that makes a part of an object useless: nobody can tell what it was to mean."""

Ignored = Callable[[str], None]
"""Is told of unknown kinds and fields: ``"kind NetworkPolicy"``, ``"IPPool field spec.foo"``."""


def ignore(what: str) -> None:
    """Take note of nothing."""


class InvalidResource(ValueError):
    """An object that cannot be used. ``field`` is a path like ``spec.ipNetworks[1]``, empty for the whole object."""

    def __init__(self, reason: str, *, field: str = "", key: ResourceKey | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
        self.key = key

    def __str__(self) -> str:
        subject = " ".join(part for part in (str(self.key) if self.key else "", self.field) if part)
        return f"{subject}: {self.reason}" if subject else self.reason
