"""Addresses and prefixes as small tuples of packed bytes, the form in which netlink wants them.

Invariant: a ``Net`` is canonical (no host bits) unless it was parsed with ``parse_interface``.
Text is parsed once, at the edge; everything inside compares and hashes bytes.
"""

from __future__ import annotations

import ipaddress
import socket
from enum import IntEnum
from typing import NamedTuple


class Family(IntEnum):
    """An address family; the value is the kernel's ``AF_*`` number."""

    V4 = socket.AF_INET
    V6 = socket.AF_INET6

    @property
    def bits(self) -> int:
        """Length of an address in bits."""
        return 32 if self is Family.V4 else 128

    @property
    def version(self) -> int:
        """4 or 6, for people and for object names."""
        return 4 if self is Family.V4 else 6

    def __str__(self) -> str:
        return f"IPv{self.version}"


FAMILIES = (Family.V4, Family.V6)


def family_of(address: bytes) -> Family:
    """Family of a packed address."""
    return Family.V4 if len(address) == 4 else Family.V6


def format_address(address: bytes) -> str:
    """Text of a packed address: ``b"\\x0a\\0\\0\\1"`` → ``10.0.0.1``."""
    return socket.inet_ntop(family_of(address), address)


def parse_address(text: str) -> bytes:
    """Packed form of one address.

    Raises:
        ValueError: the text is no IPv4 or IPv6 address, or carries a zone (``%eth0``).
    """
    if "%" in text:
        raise ValueError(f"{text!r}: an address with a zone is not allowed here")
    return ipaddress.ip_address(text).packed


class Net(NamedTuple):
    """A prefix: packed network address and prefix length."""

    packed: bytes
    length: int

    @property
    def family(self) -> Family:
        return family_of(self.packed)

    @property
    def is_host(self) -> bool:
        """True for a /32 or /128."""
        return self.length == len(self.packed) * 8

    def __str__(self) -> str:
        return f"{format_address(self.packed)}/{self.length}"

    def covers(self, other: Net | bytes) -> bool:
        """Whether a prefix or a packed address of the same family lies in this prefix (or equals it)."""
        packed, length = other if isinstance(other, Net) else (other, len(other) * 8)
        if len(packed) != len(self.packed) or length < self.length:
            return False
        shift = len(packed) * 8 - self.length
        return int.from_bytes(packed, "big") >> shift == int.from_bytes(self.packed, "big") >> shift

    @classmethod
    def host(cls, address: bytes) -> Net:
        """The /32 or /128 of one address."""
        return cls(address, len(address) * 8)

    @classmethod
    def parse(cls, text: str) -> Net:
        """Parse a CIDR or a bare address; ``2001::00/64`` becomes ``2001::/64``.

        Raises:
            ValueError: not a CIDR, or host bits are set (``10.48.0.1/21``).
        """
        network = ipaddress.ip_network(text, strict=True)
        return cls(network.network_address.packed, network.prefixlen)

    @classmethod
    def parse_interface(cls, text: str) -> Net:
        """Parse an address with the prefix length of its subnet (``10.0.0.5/24``), keeping the host bits.

        Raises:
            ValueError: not an address or CIDR.
        """
        interface = ipaddress.ip_interface(text)
        return cls(interface.ip.packed, interface.network.prefixlen)
