"""The endpoints of a cluster as identities and shards, and what of them changed since it was last told. Pure.

Invariant: an identity is in use exactly as long as an endpoint has it. A change costs what it changes; telling it costs
the shards that it is in.
"""

from __future__ import annotations

from collections import Counter

from msgspec import Struct, field

from felixpy.model.resources import ResourceKey, WorkloadEndpoint
from felixpy.mqtt.peers import (
    DELTA,
    SHARDS,
    Record,
    encode_identity,
    encode_peers,
    endpoint_hash,
    identity_topic,
    record,
    shard_of,
    shard_topic,
)


class Told(Struct, frozen=True):
    """What to write, in this order: ``first``, ``shards``, ``delta``, ``last``. Topics with their content."""

    first: dict[str, bytes] = field(default_factory=dict)
    shards: dict[str, bytes] = field(default_factory=dict)
    delta: dict[str, bytes] = field(default_factory=dict)
    last: dict[str, bytes] = field(default_factory=dict)


class PeerTable:
    """All endpoints of the cluster. ``epoch`` names the stream, ``number`` is that of its latest delta."""

    def __init__(self, epoch: str, number: int = 0) -> None:
        self.epoch = epoch
        self.number = number
        self._shards: list[dict[bytes, Record]] = [{} for _ in range(SHARDS)]
        self._uses: Counter[str] = Counter()
        self._payloads: dict[str, bytes] = {}
        self._changed: dict[bytes, None] = {}
        self._untold: dict[str, None] = {}

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    @property
    def identities(self) -> int:
        return len(self._payloads)

    @property
    def has_news(self) -> bool:
        return bool(self._changed)

    def put(self, key: ResourceKey, endpoint: WorkloadEndpoint | None) -> None:
        """An endpoint as it is now; None, or one without addresses, is none that others can talk to."""
        name = endpoint_hash(key)
        shard = self._shards[shard_of(name)]
        before = shard.get(name)
        after = self._record(endpoint) if endpoint is not None and endpoint.addresses else None
        if before == after:
            return
        if after is not None:
            shard[name] = after
            self._uses[after.identity] += 1
        else:
            del shard[name]
        if before is not None:
            self._release(before.identity)
        self._changed[name] = None

    def _record(self, endpoint: WorkloadEndpoint) -> Record:
        identity, payload = encode_identity(endpoint.labels, endpoint.profiles, endpoint.ports)
        if identity not in self._payloads:
            self._payloads[identity] = payload
            self._untold[identity] = None
        return record(identity, endpoint.addresses)

    def _release(self, identity: str) -> None:
        self._uses[identity] -= 1
        if not self._uses[identity]:
            del self._uses[identity], self._payloads[identity]
            self._untold[identity] = None

    def continue_from(self, epoch: str, number: int) -> None:
        """Go on with a stream that another hub began, so that nobody has to read it anew."""
        self.epoch, self.number = epoch, number

    def skip(self) -> None:
        """Leave a number out: who follows has missed something, and reads all anew."""
        self.number += 1

    def forget_news(self) -> None:
        """All is compared and written as a whole now."""
        self._changed.clear()
        self._untold.clear()

    def changes(self) -> Told:
        """What is to be told since the last call: with nothing new a delta without entries, by which a hub lives."""
        self.number += 1
        names, self._changed = self._changed, {}
        untold, self._untold = self._untold, {}
        news = {name: self._shards[shard_of(name)].get(name) for name in names}
        return Told(
            first={identity_topic(each): self._payloads[each] for each in untold if each in self._payloads},
            shards={shard_topic(shard): self._shard(shard) for shard in sorted({shard_of(name) for name in names})},
            delta={DELTA: encode_peers(self.epoch, self.number, news)},
            last={identity_topic(each): b"" for each in untold if each not in self._payloads},
        )

    def everything(self) -> dict[str, bytes]:
        """All identities and shards, as of now."""
        identities = {identity_topic(each): payload for each, payload in self._payloads.items()}
        return identities | {shard_topic(shard): self._shard(shard) for shard in range(SHARDS)}

    def _shard(self, shard: int) -> bytes:
        return encode_peers(self.epoch, self.number, self._shards[shard])
