"""What is known of one scope of retained topics, kind by kind, against its manifest. Pure.

A *group* is the topics of one kind. ``known`` is what was delivered and not removed since; what of it this connection
(or this re-read) has not shown yet is ``stale``: nothing while all is well, so that hundreds of thousands of topics are
in one dictionary alone. Invariant: ``total`` is the digest of what is not stale.
"""

from __future__ import annotations

from collections.abc import Iterator

from felixpy.model.net import quote
from felixpy.mqtt import topics
from felixpy.mqtt.manifest import MODULUS, Manifest, content_hash


class Group:
    """The topics of one kind."""

    def __init__(self, segment: str) -> None:
        self.segment = segment
        self.known: dict[str, int] = {}
        self.stale: set[str] = set()
        self.total = 0

    @property
    def seen(self) -> int:
        """How many topics were shown."""
        return len(self.known) - len(self.stale)

    def has_seen(self, topic: str) -> bool:
        return topic in self.known and topic not in self.stale

    def put(self, topic: str, payload: bytes) -> bool:
        """Take a topic's content; true if it is not what was known."""
        digest = content_hash(topic, payload)
        before = self.known.get(topic)
        counted = 0 if before is None or topic in self.stale else before
        self.total = (self.total + digest - counted) % MODULUS
        self.known[topic] = digest
        self.stale.discard(topic)
        return before != digest

    def drop(self, topic: str) -> bool:
        """Forget a topic; true if it was known."""
        before = self.known.pop(topic, None)
        if before is None:
            return False
        if topic not in self.stale:
            self.total = (self.total - before) % MODULUS
        self.stale.discard(topic)
        return True

    def restart(self) -> None:
        """Everything known is stale until it is seen again."""
        self.stale = set(self.known)
        self.total = 0

    def sweep(self) -> list[str]:
        """Forget and return what is stale."""
        stale, self.stale = sorted(self.stale), set()
        for topic in stale:
            del self.known[topic]
        return stale

    def matches(self, manifest: Manifest) -> bool:
        if self.seen != manifest.expects(self.segment):
            return False
        return manifest.digests.get(self.segment, self.total) == self.total


class Scope:
    """The groups that one manifest speaks of."""

    def __init__(self, name: str, segments: tuple[str, ...], *, is_peers: bool = False) -> None:
        """``is_peers``: another node's, which may vanish with its manifest while nobody looks."""
        self.name = name
        self.is_peers = is_peers
        self.segments = segments
        self.groups = {segment: Group(segment) for segment in segments}
        self.manifest: Manifest | None = None
        self.manifest_error = ""
        self.refusal = ""
        """Why the broker does not take us for whom the scope belongs to; what it does not show may be there then."""
        self._had_manifest = False
        self._lost = False
        self._newest: Manifest | None = None
        self._went_back = False

    @property
    def got(self) -> int:
        return sum(group.seen for group in self.groups.values())

    @property
    def want(self) -> int:
        if self.manifest is not None:
            return self.manifest.total(self.segments)
        return sum(len(group.known) for group in self.groups.values())

    def restart(self) -> None:
        if self.manifest is not None and not self._went_back:
            self._newest = self.manifest
        self.manifest, self.manifest_error = None, ""
        for group in self.groups.values():
            group.restart()

    def take_manifest(self, manifest: Manifest | None, error: str) -> None:
        """The scope's manifest: None if there is none (any more), with ``error`` if it cannot be used.

        The first one of a connection tells whether the broker is one that went back to an older state: same epoch,
        lower revision. A new epoch is a fresh start, whatever was before.
        """
        is_first = self.manifest is None
        self.manifest, self.manifest_error = manifest, error
        if manifest is None or self._newest is None:
            return
        if manifest.epoch != self._newest.epoch:
            self._went_back = False
        elif is_first and manifest.rev < self._newest.rev:
            self._went_back = True

    def settled(self) -> None:
        """The whole snapshot is in sync."""
        self._had_manifest = self._had_manifest or self.manifest is not None
        self._lost = self._went_back = False

    def matches(self) -> bool:
        """Equal to the manifest, or there is none to be equal to."""
        manifest = self.manifest
        return manifest is None or all(group.matches(manifest) for group in self.groups.values())

    def lacks(self, group: Group) -> bool:
        """Whether one of the groups alone keeps the scope from being proved: known at once, for every message."""
        return self.manifest is not None and not group.matches(self.manifest)

    def judge(self, *, quiet: bool) -> bool:
        """Complete: proved by the manifest, or believed because nothing more comes and nothing speaks against it.

        Takes note of a loss, so it must be asked for each scope whatever the others say.
        """
        if self.manifest_error:
            return False
        if self.manifest is not None:
            return self._proved(self.manifest, quiet) and not (self._went_back and self._stale)
        if quiet:
            self._lost = self._lost or (self._stale and self.got == 0)
        return quiet and not self._doubted

    def _proved(self, manifest: Manifest, quiet: bool) -> bool:
        """Equal to the manifest, which says nothing of the state that an unfinished write will lead to.

        Whoever fills a broker that lost everything begins with a manifest of nothing.
        """
        if manifest.writer:
            return quiet and self.got > 0 and self.matches()
        return self.matches() and (quiet or manifest.exact(self.segments))

    def size(self, group: Group) -> int:
        """As many topics as one of the groups is known to have."""
        return max(len(group.known), self.manifest.expects(group.segment) if self.manifest else 0)

    @property
    def _stale(self) -> bool:
        return any(group.stale for group in self.groups.values())

    @property
    def _doubted(self) -> bool:
        """Without a manifest: a broker that lost or hides its topics looks like one whose objects were all deleted."""
        return not self.is_peers and (self._had_manifest or (self._lost and self._stale) or self._hidden)

    @property
    def _hidden(self) -> bool:
        """Access rules hide topics without a word; whoever sees one sees them all."""
        return bool(self.refusal) and self.manifest is None and self.got == 0

    def doubtful(self) -> Iterator[Group]:
        """Groups that are worth reading again."""
        if self.manifest is None:
            if self._doubted or self.got == 0:
                yield from self.groups.values()
            return
        for group in self.groups.values():
            if not group.matches(self.manifest):
                yield group

    def why(self) -> str:
        """Why the scope is not complete; empty if nothing is known against it."""
        topic = topics.manifest_topic(self.name)
        if self.manifest_error:
            return f"manifest {topic} cannot be used: {self.manifest_error}; write it again with 'felixpy apply'"
        if self.manifest is None:
            return self._why_without_manifest(topic)
        gaps = [self._gap(group, self.manifest) for group in self.groups.values() if not group.matches(self.manifest)]
        if not gaps:
            return self._why_not_believed(topic, self.manifest)
        return f"snapshot incomplete: {', '.join(gaps)}{self._writing(self.manifest) or self._repair(topic)}"

    def _why_not_believed(self, topic: str, manifest: Manifest) -> str:
        if not (self._went_back and self._newest and self._stale):
            return f"snapshot incomplete{self._writing(manifest)}" if manifest.writer else ""
        missing = sum(len(group.stale) for group in self.groups.values())
        return (
            f"the broker went back to an older state ({topic} has rev {manifest.rev} after {self._newest.rev}) without "
            f"{missing} objects that are kept; publish them again with 'felixpy apply', or give them up with "
            "'felixpy apply --recount'"
        )

    def _repair(self, topic: str) -> str:
        """What to do about a manifest that nobody is writing."""
        assert self.manifest is not None
        lacks = any(group.seen < self.manifest.expects(group.segment) for group in self.groups.values())
        cause = (
            "the broker drops messages, see config/mosquitto.conf, or objects were lost, or deleted without felixpy"
            if lacks
            else "objects were written without felixpy"
        )
        return f" ({cause}: 'felixpy apply --recount -f' any object of {topic} declares that what is there is all)"

    @staticmethod
    def _writing(manifest: Manifest) -> str:
        return f" (a write by {quote(manifest.writer)[1:-1]} is not finished)" if manifest.writer else ""

    def _why_without_manifest(self, topic: str) -> str:
        if not self._doubted:
            return ""
        if self._hidden:
            return self.refusal
        if self._had_manifest:
            return f"the broker no longer holds the manifest {topic}; publish the objects again with 'felixpy apply'"
        return (
            f"the broker lost {self.want - self.got} of {self.want} objects without deleting them; publish them again"
        )

    @staticmethod
    def _gap(group: Group, manifest: Manifest) -> str:
        got, want = group.seen, manifest.expects(group.segment)
        return f"{group.segment} {got}/{want}" if got != want else f"{group.segment} {got}/{want} with other content"
