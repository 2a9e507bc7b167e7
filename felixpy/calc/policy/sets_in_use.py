"""Which sets the chains of this node name, and their members as peers, network sets and EndpointSlices change. Pure.

Invariant: a set is there exactly while a chain of either family names it. A change costs what it changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from msgspec import Struct, field

from felixpy.calc.policy.classes import MemberKey
from felixpy.calc.policy.order import ChainId
from felixpy.calc.policy.output import Output
from felixpy.calc.policy.selection import Held, ProfileLabels, Selection, Watched
from felixpy.calc.policy.sets import Content, NetsSet, PortSet, SelectorSet, ServiceSet
from felixpy.model.net import Family, Net
from felixpy.model.policy import EndpointSlice, ServiceName
from felixpy.model.resources import ResourceKey
from felixpy.model.selectors import ALL, Selector
from felixpy.store.index import Index
from felixpy.store.peers import Identity, Peer

K = TypeVar("K")


class SetInUse(Struct, eq=False):
    """A set in use: which chains name it."""

    content: Content
    users: set[ChainId] = field(default_factory=set)
    watched: Watched | None = None


class SetsInUse:
    """The sets, and everything that may be a member of one."""

    def __init__(self, labels: ProfileLabels, output: Output, changed: set[ChainId]) -> None:
        """``changed``: where chains are put whose rules change, because a set of theirs begins or ends."""
        self.peers = Selection(labels, self._peer_moved)
        self._output = output
        self._changed = changed
        self._peer: dict[ResourceKey, Peer] = {}
        self._with_port: dict[str, dict[Identity, int]] = {}
        """How many things of an identity have a port of a name: pods of one deployment have the same."""
        self._slices: dict[ResourceKey, EndpointSlice] = {}
        self._of_service: Index[ServiceName, ResourceKey] = Index()
        self._sets: dict[tuple[object, ...], SetInUse] = {}
        self._by_selector: dict[str, list[tuple[object, ...]]] = {}
        self._by_service: dict[ServiceName, list[tuple[object, ...]]] = {}
        self._idle: set[tuple[object, ...]] = set()

    # --- what is asked by others ---------------------------------------------------------------------------------

    def members(self, families: tuple[Family, ...]) -> dict[MemberKey, None]:
        return {key: None for each in self._sets.values() for key in each.content.members() if key.family in families}

    def contents(self) -> dict[str, Content]:
        """What the sets hold, by the names that rules give them."""
        return {name: each.content for each in self._sets.values() for name, _ in each.content.described()}

    def described(self) -> Iterator[tuple[str, str, int, set[ChainId]]]:
        """Name, what it stands for, how many members, and the chains whose rules name it."""
        for each in self._sets.values():
            members = Counter(key.set for key in each.content.members())
            for name, words in each.content.described():
                yield name, words, members[name], each.users

    # --- members -------------------------------------------------------------------------------------------------

    def put_peer(self, key: ResourceKey, new: Peer | None) -> None:
        """Members are added before others go, so that what both give stays."""
        old = self._peer.get(key)
        before, after = self.peers.move(key, old.identity if old else None, new.identity if new else None)
        had = before.projection.watched if before and old else ()
        has = after.projection.watched if after else ()
        self._note_ports(old, new)
        if new is None:
            self._peer.pop(key, None)
        else:
            self._peer[key] = new
            same = new.is_where(old)
            for watched in [one for one in has if not same or one not in had]:
                self._enter(watched, new)
        if old is not None:
            same = old.is_where(new)
            for watched in [one for one in had if not same or one not in has]:
                self._leave(watched, old)

    def _note_ports(self, old: Peer | None, new: Peer | None) -> None:
        for peer, sign in ((old, -1), (new, 1)):
            if peer is not None and peer.ports:
                for name in {port.name for port in peer.ports}:
                    self._note_port(name, peer.identity, sign)

    def _note_port(self, name: str, identity: Identity, sign: int) -> None:
        having = self._with_port.setdefault(name, {})
        having[identity] = having.get(identity, 0) + sign
        if not having[identity]:
            del having[identity]
        if not having:
            del self._with_port[name]

    def _peer_moved(self, held: Held, lost: Iterable[Watched], gained: Iterable[Watched]) -> None:
        for watched in gained:
            if watched.selector.text in self._by_selector:
                for thing in held.things:
                    self._enter(watched, self._peer[thing])
        for watched in lost:
            if watched.selector.text in self._by_selector:
                for thing in held.things:
                    self._leave(watched, self._peer[thing])

    def _enter(self, watched: Watched, peer: Peer) -> None:
        for spec in self._by_selector.get(watched.selector.text, ()):
            each = self._sets[spec]
            if isinstance(each.content, SelectorSet):
                if each.content.add(peer):
                    self._changed |= each.users
            elif isinstance(each.content, PortSet) and peer.ports:
                each.content.add(each.content.of(peer))

    def _leave(self, watched: Watched, peer: Peer) -> None:
        for spec in self._by_selector.get(watched.selector.text, ()):
            each = self._sets[spec]
            if isinstance(each.content, SelectorSet):
                if each.content.discard(peer):
                    self._changed |= each.users
            elif isinstance(each.content, PortSet) and peer.ports:
                each.content.discard(each.content.of(peer))

    def put_slice(self, key: ResourceKey, found: EndpointSlice | None) -> None:
        old = self._slices.pop(key, None)
        if found is not None:
            self._slices[key] = found
            self._of_service.add(found.service, key)
            for each in self._service_sets(found.service):
                each.add(each.of(found))
        if old is not None:
            if found is None or found.service != old.service:
                self._of_service.discard(old.service, key)
            for each in self._service_sets(old.service):
                each.discard(each.of(old))

    def _service_sets(self, service: ServiceName) -> Iterator[ServiceSet]:
        for spec in self._by_service.get(service, ()):
            found = self._sets[spec].content
            assert isinstance(found, ServiceSet)
            yield found

    # --- sets ----------------------------------------------------------------------------------------------------

    def need(self, spec: tuple[object, ...], chain: ChainId, make: Callable[[], SetInUse]) -> SetInUse:
        found = self._sets.get(spec)
        if found is None:
            found = make()
        found.users.add(chain)
        return found

    def make_selector(self, spec: tuple[object, ...], selector: Selector) -> SetInUse:
        watched = self.peers.watch(selector)
        made = SelectorSet(selector.text, self._output)
        found = self._sets[spec] = SetInUse(made, watched=watched)
        self._by_selector.setdefault(selector.text, []).append(spec)
        made.show()
        for held in watched.held():
            for thing in held.things:
                made.add(self._peer[thing])
        return found

    def make_ports(
        self, spec: tuple[object, ...], selector: Selector, protocol: int, names: tuple[str, ...]
    ) -> SetInUse:
        watched = self.peers.watch(selector)
        made = PortSet(selector.text, protocol, names, self._output)
        found = self._sets[spec] = SetInUse(made, watched=watched)
        self._by_selector.setdefault(selector.text, []).append(spec)
        made.show()
        for identity in {one for name in names for one in self._with_port.get(name, ())}:
            held = self.peers.held_by(identity)
            if held is not None and watched in held.projection.watched:
                for thing in held.things:
                    made.add(made.of(self._peer[thing]))
        return found

    def make_service(self, spec: tuple[object, ...], service: ServiceName, ports: bool) -> SetInUse:
        made = ServiceSet(service, ports=ports, output=self._output)
        found = self._sets[spec] = SetInUse(made)
        self._by_service.setdefault(service, []).append(spec)
        made.show()
        for key in self._of_service.at(service):
            made.add(made.of(self._slices[key]))
        return found

    def make_nets(self, spec: tuple[object, ...], nets: tuple[Net, ...]) -> SetInUse:
        made = NetsSet(nets, self._output)
        self._sets[spec] = SetInUse(made)
        made.show()
        return self._sets[spec]

    def _unmake(self, spec: tuple[object, ...]) -> None:
        found = self._sets.pop(spec)
        found.content.hide()
        if found.watched is not None:
            _remove(self._by_selector, found.watched.selector.text, spec)
            self.peers.unwatch(found.watched)
        if isinstance(found.content, ServiceSet):
            _remove(self._by_service, found.content.service, spec)

    def leave(self, chain: ChainId, specs: Iterable[tuple[object, ...]]) -> None:
        """A chain names these no more."""
        for spec in specs:
            users = self._sets[spec].users
            users.discard(chain)
            if not users:
                self._idle.add(spec)

    def clear_up(self) -> None:
        """Sets that nobody names go."""
        for spec in self._idle:
            if spec in self._sets and not self._sets[spec].users:
                self._unmake(spec)
        self._idle.clear()


class SetsOfChain:
    """Makes the sets that a chain names, and remembers which."""

    def __init__(self, sets: SetsInUse, chain: ChainId) -> None:
        self.used: set[tuple[object, ...]] = set()
        self._sets = sets
        self._chain = chain

    def _need(self, spec: tuple[object, ...], make: Callable[[], SetInUse]) -> SetInUse:
        self.used.add(spec)
        return self._sets.need(spec, self._chain, make)

    def selector(self, selector: Selector, family: Family) -> tuple[str, str]:
        spec = ("selector", selector.text)
        found = self._need(spec, lambda: self._sets.make_selector(spec, selector)).content
        assert isinstance(found, SelectorSet)
        return found.hosts, found.nets if found.has_prefixes(family) else ""

    def ports(self, selector: Selector | None, protocol: int, names: tuple[str, ...]) -> str:
        chosen = selector or ALL
        spec = ("ports", chosen.text, protocol, names)
        found = self._need(spec, lambda: self._sets.make_ports(spec, chosen, protocol, names)).content
        assert isinstance(found, PortSet)
        return found.name

    def service(self, service: ServiceName, *, ports: bool) -> str:
        spec = ("service", service, ports)
        found = self._need(spec, lambda: self._sets.make_service(spec, service, ports)).content
        assert isinstance(found, ServiceSet)
        return found.name

    def nets(self, nets: tuple[Net, ...]) -> str:
        spec = ("nets", nets)
        found = self._need(spec, lambda: self._sets.make_nets(spec, nets)).content
        assert isinstance(found, NetsSet)
        return found.name


def _remove(index: dict[K, list[tuple[object, ...]]], key: K, spec: tuple[object, ...]) -> None:
    index[key].remove(spec)
    if not index[key]:
        del index[key]
