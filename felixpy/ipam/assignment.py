"""What whoever attaches a workload asks of an address store, and what it gets.

Invariant of every store: all families that are wanted, or an error and nothing; one address has one owner; to release
twice, or what nobody has, is success.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct, field

from felixpy.model.net import Family, Net
from felixpy.plain_error import PlainError


class NoAddress(PlainError):
    """An address that is wanted cannot be had. ``later``: a repetition may help (the API is away, or it cools down)."""

    def __init__(self, message: str, *, later: bool = False) -> None:
        super().__init__(message)
        self.later = later


class Wanted(Struct, frozen=True):
    """Addresses for one interface of one workload.

    ``handle`` names the owner; ``requested`` are addresses that must be given, at most one per family; ``ranges`` and
    ``pools`` (names or CIDRs) restrict the choice where they are not empty; ``attributes`` go with the address where
    the store keeps them. ``use``: which of a pool's ``allowedUses`` the address is for.
    """

    handle: str
    families: tuple[Family, ...]
    requested: tuple[Net, ...] = ()
    ranges: tuple[Net, ...] = ()
    pools: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    use: str = "Workload"


class Addresses(Protocol):
    """A store of addresses."""

    async def assign(self, wanted: Wanted) -> tuple[Net, ...]:
        """Addresses as /32 and /128, in the order of the families.

        Raises:
            NoAddress: nothing is taken.
        """

    async def release(self, handle: str, addresses: tuple[Net, ...]) -> None:
        """Give back what a handle has.

        Raises:
            NoAddress: it cannot be given back now; it is still taken.
        """

    def adopt(self, handle: str, addresses: tuple[Net, ...]) -> None:
        """Take note, at the start, of what the journal says that a handle has."""

    def exhausted(self, families: tuple[Family, ...]) -> str:
        """Why an address of one of the families cannot be had now, as far as it is known without asking; else empty."""
