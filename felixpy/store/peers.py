"""What of an endpoint others' policies look at: labels, profiles, addresses, named ports. Nothing else of remote ones.

Labels and profiles are an ``Identity``, of which there is one object for all endpoints that have the same: pods of one
deployment are alike, so a hundred thousand endpoints have a few thousand identities. Invariant: two identities that are
in use are equal only if they are one object. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from sys import intern
from weakref import WeakValueDictionary

from felixpy.model.net import Net
from felixpy.model.policy import EndpointPort


class Identity:
    """Own labels and profiles, in their order. Never changed; compared as an object."""

    __slots__ = ("__weakref__", "labels", "profiles")

    def __init__(self, labels: Mapping[str, str], profiles: tuple[str, ...]) -> None:
        self.labels = labels
        self.profiles = profiles

    def __repr__(self) -> str:
        return f"Identity({dict(self.labels)}, {self.profiles})"


class Identities:
    """The identities that are in use."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[str, ...], Identity] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, labels: Mapping[str, str], profiles: tuple[str, ...]) -> Identity:
        """The one object for these labels and profiles."""
        found = self._known.get(_content(labels, profiles))
        if found is None:
            kept = {intern(label): intern(value) for label, value in labels.items()}
            found = Identity(kept, tuple(map(intern, profiles)))
            self._known[_content(kept, found.profiles)] = found
        return found


def _content(labels: Mapping[str, str], profiles: tuple[str, ...]) -> tuple[str, ...]:
    return (str(len(profiles)), *profiles, *chain.from_iterable(sorted(labels.items())))


class Peer:
    """An endpoint, or a network set, as others see it. Never changed.

    ``place`` is its addresses and prefixes one after the other, each with the number of its bytes and its length before
    it: two addresses are 60 bytes of memory where they would be 300.
    """

    __slots__ = ("identity", "place", "ports")

    def __init__(self, identity: Identity, nets: tuple[Net, ...], ports: tuple[EndpointPort, ...] = ()) -> None:
        self.identity = identity
        self.place = b"".join([bytes((len(packed), length)) + packed for packed, length in nets])
        self.ports = ports

    @property
    def nets(self) -> tuple[Net, ...]:
        """Its addresses and prefixes."""
        found, place, at = [], self.place, 0
        while at < len(place):
            end = at + 2 + place[at]
            found.append(Net(place[at + 2 : end], place[at + 1]))
            at = end
        return tuple(found)

    def is_where(self, other: Peer | None) -> bool:
        """Whether another one has the same addresses, prefixes and ports."""
        return other is not None and (self.place, self.ports) == (other.place, other.ports)

    def __repr__(self) -> str:
        return f"Peer({self.identity}, {self.nets}, {self.ports})"
