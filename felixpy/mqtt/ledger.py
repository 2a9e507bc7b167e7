"""Arithmetic of manifests for whoever writes topics: one change is one subtraction and one addition. Pure.

Invariant: ``counted(scope, content)`` equals a ledger to which the changes that lead to ``content`` were applied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from msgspec.structs import replace

from felixpy.mqtt import topics
from felixpy.mqtt.manifest import MODULUS, Manifest, content_hash


class Ledger:
    """Counts and digests of one scope while it is being changed."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._counts = Counter(manifest.counts)
        self._digests = Counter(manifest.digests)
        self._namespaces = Counter(manifest.namespaces)

    def change(self, topic: str, before: bytes, after: bytes) -> None:
        """A topic's content changes; empty is absent."""
        self.change_hash(
            topic, content_hash(topic, before) if before else None, content_hash(topic, after) if after else None
        )

    def change_hash(self, topic: str, before: int | None, after: int | None) -> None:
        """``change`` for who keeps no more of a content than its hash; None is absent."""
        if before is not None:
            self._add(topic, before, -1)
        if after is not None:
            self._add(topic, after, +1)

    def _add(self, topic: str, digest: int, sign: int) -> None:
        segment = topics.segment_of(topic)
        self._counts[segment] += sign
        self._digests[segment] = (self._digests[segment] + sign * digest) % MODULUS
        if segment == "wep":
            self._namespaces[topics.unescape(topic.split("/")[2])] += sign

    @property
    def consistent(self) -> bool:
        """False if the manifest that this began with cannot have been true."""
        numbers = (*self._counts.values(), *self._namespaces.values())
        empty = all(self._digests[segment] == 0 for segment, count in self._counts.items() if not count)
        return all(number >= 0 for number in numbers) and empty

    def begun(self, writer: str) -> Manifest:
        """What the scope says while ``writer`` changes it: as before the changes, with the writer's name."""
        return replace(self.manifest(), rev=self._manifest.rev, writer=writer)

    def manifest(self) -> Manifest:
        """The manifest after the changes so far."""
        counts = {segment: count for segment, count in self._counts.items() if count}
        return replace(
            self._manifest,
            rev=self._manifest.rev + 1,
            counts=counts,
            digests={segment: self._digests[segment] for segment in counts},
            namespaces={name: count for name, count in self._namespaces.items() if count},
            writer="",
        )


def counted(content: Mapping[str, bytes], previous: Manifest | None, epoch: str) -> Ledger:
    """Ledger of a scope whose whole content was read."""
    ledger = Ledger(Manifest({}, epoch=previous.epoch if previous else epoch, rev=previous.rev if previous else 0))
    for topic, payload in content.items():
        ledger.change(topic, b"", payload)
    return ledger
