"""Addresses and prefixes as small tuples of packed bytes, the form in which netlink wants them.

Invariant: a ``Net`` is canonical (no host bits) unless it was parsed with ``parse_interface``.
Text is parsed once, at the edge; everything inside compares and hashes bytes. Parsing goes by ``inet_pton``, which
takes a tenth of the time of the ``ipaddress`` module; it must never be looser than that module.
"""

from __future__ import annotations

import socket
from enum import IntEnum
from typing import NamedTuple
from unicodedata import category


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

    @property
    def other(self) -> Family:
        """The other one of the two."""
        return Family.V6 if self is Family.V4 else Family.V4

    def __str__(self) -> str:
        return f"IPv{self.version}"


FAMILIES = (Family.V4, Family.V6)
_MAPPED = bytes(10) + b"\xff\xff"
_FAMILY_BY_BYTES = {4: Family.V4, 16: Family.V6}


def family_of(address: bytes) -> Family:
    """Family of a packed address."""
    return _FAMILY_BY_BYTES[len(address)]


def format_address(address: bytes) -> str:
    """Text of a packed address: ``b"\\x0a\\0\\0\\1"`` → ``10.0.0.1``."""
    return socket.inet_ntop(family_of(address), address)


def parse_address(text: str) -> bytes:
    """Packed form of one address.

    Raises:
        ValueError: the text is no IPv4 or IPv6 address, or carries a zone (``%eth0``).
    """
    if "%" in text:
        raise ValueError(f"{quote(text)}: an address with a zone is not allowed here")
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        raise ValueError(f"{quote(text)} is not an IPv4 or IPv6 address") from None


def peer_address(name: object) -> bytes | None:
    """Packed address of what ``getpeername`` tells of an IP socket, None of any other; IPv4 also where the socket is
    one of IPv6 (RFC 4291 §2.5.5.2).
    """
    if not isinstance(name, tuple) or not name or not isinstance(name[0], str):
        return None
    try:
        packed = parse_address(name[0].partition("%")[0])
    except ValueError:
        return None
    return packed[12:] if packed.startswith(_MAPPED) else packed


def quote(value: object) -> str:
    """A value from outside for a one-line message: quoted, control characters escaped, at most 80 characters."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print very long numbers
        return "a very long number"
    text = ascii(value[:81]) if isinstance(value, str) else ascii(value)
    return text if len(text) <= 80 else f"{text[:76]}…"


def printable(text: str) -> str:
    """Text from outside for a terminal: what turns the direction of writing, breaks lines or is not seen is escaped."""
    return "".join(_escaped(one) if category(one) in _UNSEEN else one for one in text)


_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def _escaped(character: str) -> str:
    return ascii(character)[1:-1]


def _parse_prefix(text: str) -> tuple[bytes, int]:
    address, slash, digits = text.partition("/")
    packed = parse_address(address)
    bits = len(packed) * 8
    if not slash:
        return packed, bits
    # Not int() alone: it takes "+8", "1_0" and digits of other scripts.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 3 and int(digits) <= bits):
        raise ValueError(f"{quote(text)}: the prefix length must be a number from 0 to {bits}")
    return packed, int(digits)


def _masked(packed: bytes, length: int) -> bytes:
    shift = len(packed) * 8 - length
    if not shift:
        return packed
    return (int.from_bytes(packed, "big") >> shift << shift).to_bytes(len(packed), "big")


class Net(NamedTuple):
    """A prefix: packed network address and prefix length."""

    packed: bytes
    length: int

    @property
    def family(self) -> Family:
        return _FAMILY_BY_BYTES[len(self.packed)]

    @property
    def is_host(self) -> bool:
        """True for a /32 or /128."""
        return self.length == len(self.packed) * 8

    def __str__(self) -> str:
        return f"{format_address(self.packed)}/{self.length}"

    def __contains__(self, other: object) -> bool:
        """``inner in outer``: whether a prefix or packed address of the same family lies in this one."""
        return isinstance(other, Net | bytes) and self.covers(other)

    def covers(self, other: Net | bytes) -> bool:
        """``inner in outer`` by name: mypy takes ``in`` on a tuple for a question about its items."""
        if isinstance(other, Net):
            return other.length >= self.length and self.covers(other.packed)
        packed, length = self
        size = len(packed)
        if len(other) != size:
            return False
        shift = size * 8 - length
        return int.from_bytes(other, "big") >> shift == int.from_bytes(packed, "big") >> shift

    def widened(self, length: int) -> Net:
        """The prefix of a shorter length that holds this one."""
        return Net(_masked(self.packed, length), length)

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
        packed, length = _parse_prefix(text)
        network = cls(_masked(packed, length), length)
        if network.packed != packed:
            raise ValueError(f"{quote(text)} has host bits set; the network is {network}")
        return network

    @classmethod
    def parse_masked(cls, text: str) -> Net:
        """Parse a CIDR or a bare address and drop the host bits: ``10.48.0.1/21`` becomes ``10.48.0.0/21``.

        Raises:
            ValueError: not an address or CIDR.
        """
        packed, length = _parse_prefix(text)
        return cls(_masked(packed, length), length)

    @classmethod
    def parse_interface(cls, text: str) -> Net:
        """Parse an address with the prefix length of its subnet (``10.0.0.5/24``), keeping the host bits.

        Raises:
            ValueError: not an address or CIDR.
        """
        return cls(*_parse_prefix(text))

    def overlaps(self, other: Net) -> bool:
        """Whether one of the two prefixes lies in the other."""
        return self.covers(other) or other.covers(self)
