"""Manifests: what a scope of retained topics must hold for a snapshot to be complete.

Written by publishers, read by agents. The digest of a kind is the sum, modulo 2**64, of one 64-bit hash per topic, so
that both sides keep it with one addition and one subtraction per change, in any order. Pure.

A manifest on the wire::

    {"epoch":"6f1c…","rev":7,"counts":{"wep":2},"digest":{"wep":"00f3a1c4d2b87e65"},"namespaces":{"default":2}}
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import msgspec
from msgspec import Struct, field

from felixpy.model.invalid import UNREADABLE
from felixpy.model.net import quote

MODULUS = 1 << 64

MAX_NUMBER = 1 << 53
"""Counts and revisions of a manifest: as large as every JSON reader keeps exactly; no broker holds so many objects."""


def content_hash(topic: str, payload: bytes) -> int:
    """64-bit BLAKE2b of topic (relative to the root), one zero byte, payload; read big-endian."""
    return int.from_bytes(blake2b(topic.encode() + b"\0" + payload, digest_size=8).digest(), "big")


class _Wire(msgspec.Struct, omit_defaults=True):
    counts: dict[str, int]
    epoch: str = ""
    rev: int = 0
    digest: dict[str, str] = {}
    namespaces: dict[str, int] = {}
    writer: str = ""


class Manifest(Struct, frozen=True):
    """Counts and digests per kind (``ippool``, ``wep``, …). A kind that is not counted has no objects.

    ``namespaces`` counts a node's endpoints per namespace, for reading them in parts. ``writer`` names the publisher
    that is changing the scope right now; counts and digests are then those of before the change.
    """

    counts: Mapping[str, int]
    digests: Mapping[str, int] = field(default_factory=dict)
    epoch: str = ""
    rev: int = 0
    namespaces: Mapping[str, int] = field(default_factory=dict)
    writer: str = ""

    def expects(self, segment: str) -> int:
        """Number of objects that the kind must have."""
        return self.counts.get(segment, 0)

    def total(self, segments: tuple[str, ...]) -> int:
        return sum(self.counts.get(segment, 0) for segment in segments)

    def exact(self, segments: tuple[str, ...]) -> bool:
        """Whether every kind that has objects has a digest too, so that equality proves the content."""
        return all(not self.counts.get(segment) or segment in self.digests for segment in segments)

    def encode(self) -> bytes:
        digest = {segment: f"{value:016x}" for segment, value in self.digests.items()}
        wire = _Wire(dict(self.counts), self.epoch, self.rev, digest, dict(self.namespaces), self.writer)
        return msgspec.json.encode(wire)


_DECODER = msgspec.json.Decoder(_Wire)


def parse_manifest(payload: bytes) -> Manifest:
    """Read a manifest. Fields that are not known are ignored.

    Raises:
        ValueError: not a manifest; says which field is wrong.
    """
    try:
        wire = _DECODER.decode(payload)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    except UNREADABLE as error:
        raise ValueError(str(error)) from None
    numbers = (*wire.counts.values(), *wire.namespaces.values(), wire.rev)
    if not all(0 <= number <= MAX_NUMBER for number in numbers):
        raise ValueError(f"a count or rev is not a number from 0 to {MAX_NUMBER}")
    digests = {segment: _parse_digest(segment, text) for segment, text in wire.digest.items()}
    return Manifest(wire.counts, digests, wire.epoch, wire.rev, wire.namespaces, wire.writer)


def _parse_digest(segment: str, text: str) -> int:
    try:
        value = int(text, 16)
    except ValueError:
        value = -1
    if len(text) != 16 or value < 0:
        raise ValueError(f"digest of {quote(segment)[1:-1]} is not 16 hexadecimal digits")
    return value
