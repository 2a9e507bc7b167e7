"""The node's interfaces as the kernel tells of them, by name.

Kept true by one dump and by link notifications. An interface that is down loses its routes in both families, and the
kernel does not bring them back (DESIGN §11.4): every event names the interfaces whose entries must be looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager

from msgspec import Struct, field

from felixpy.model.net import Family
from felixpy.netlink.message import Message
from felixpy.netlink.rtnetlink import RTM_DELLINK, RTM_NEWLINK, Link, decode_link, is_af_specific
from felixpy.slices import emptied, in_slices


class LinkEvents(Struct):
    """What a batch of notifications meant: interfaces that changed, and those that lost their kernel state.

    ``renamed``: by index the former name of an interface that got another one while it was up, which newer
    kernels allow: its routes and neighbours stay. The former name has changed but lost nothing.
    ``carriers``: interfaces that got or lost a carrier while they were up; the kernel drops the nexthop objects of
    those that are ``silent`` now.
    """

    changed: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    renamed: dict[int, str] = field(default_factory=dict)
    carriers: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.changed or self.lost or self.carriers)


class Links:
    """Interfaces by name and index. ``first_seen`` is the clock's time when an index first appeared.

    ``addressed`` are the node's own interfaces on which the last reading of its addresses found some (``read_host``).
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.by_name: dict[str, Link] = {}
        self.by_index: dict[int, Link] = {}
        self.first_seen: dict[int, float] = {}
        self.addressed: frozenset[str] = frozenset()
        self._readers: list[set[int]] = []
        self._clock = clock

    def name_of(self, index: int) -> str | None:
        link = self.by_index.get(index)
        return link.name if link else None

    @contextmanager
    def reading(self) -> Iterator[set[int]]:
        """Links are being dumped: collects the indexes that notifications tell of meanwhile, which know better."""
        newer: set[int] = set()
        self._readers.append(newer)
        try:
            yield newer
        finally:
            self._readers = [one for one in self._readers if one is not newer]

    async def adopt(self, links: list[Link], newer: Container[int] = frozenset()) -> LinkEvents:
        """Take a dump, in slices; ``links`` is empty after it. The difference to what was known counts as events."""
        events = LinkEvents()
        found: dict[int, Link] = {}
        async for some in in_slices(emptied(links, links.pop), 64):
            found.update((link.ifindex, link) for link in some)
        async for indices in in_slices(list(self.by_index), 64):
            for index in indices:
                if index not in found and index not in newer:
                    self._remove(index, events)
        async for entries in in_slices(emptied(found, found.popitem)):
            for index, link in entries:
                if index not in newer:
                    self._add(link, events)
        return events

    def notify(self, messages: Iterable[Message]) -> LinkEvents:
        """Take notifications, in order."""
        events = LinkEvents()
        for message in messages:
            if message.type not in (RTM_NEWLINK, RTM_DELLINK) or is_af_specific(message):
                continue
            link = decode_link(message)
            for newer in self._readers:
                newer.add(link.ifindex)
            if message.type == RTM_DELLINK:
                self._remove(link.ifindex, events)
            else:
                self._add(link, events)
        return events

    def tell_settings(self, name: str, family: Family, news: Mapping[str, int]) -> None:
        """Take settings that an interface has since its last link message.

        Most are known already: the kernel tells of our own writes, too.
        """
        link = self.by_name.get(name)
        if link is None:
            return
        for newer in self._readers:
            newer.add(link.ifindex)
        if not news.items() <= link.settings(family).items():
            self.by_name[name] = self.by_index[link.ifindex] = link.told(family, news)

    def _remove(self, index: int, events: LinkEvents) -> None:
        old = self.by_index.pop(index, None)
        self.first_seen.pop(index, None)
        if old is None:
            return
        if self.by_name.get(old.name) is old:
            del self.by_name[old.name]
        self._lose(old, events)

    def _lose(self, link: Link, events: LinkEvents) -> None:
        names = {link.name, events.renamed.pop(link.ifindex, link.name)}
        events.changed |= names
        events.lost |= names

    def _rename(self, old: Link, events: LinkEvents) -> None:
        """An interface that is up and stays so gets another name."""
        if self.by_name.get(old.name) is old:
            del self.by_name[old.name]
        self.first_seen.pop(old.ifindex, None)
        events.changed.add(old.name)
        events.renamed.setdefault(old.ifindex, old.name)

    def _add(self, link: Link, events: LinkEvents) -> None:
        old = self.by_index.get(link.ifindex)
        if old is not None and old.name != link.name:
            if old.up and link.up:
                self._rename(old, events)
            else:
                self._remove(link.ifindex, events)
                old = None
        if old is not None and not link.inet:
            link = link._replace(inet=old.inet)
        if old is not None and not link.inet6:
            link = link._replace(inet6=old.inet6)
        if old == link:
            return
        if old is None or (old.name, old.up, old.mac, old.mtu) != (link.name, link.up, link.mac, link.mtu):
            events.changed.add(link.name)
        if old is not None and old.up and link.up and old.carrier != link.carrier:
            events.carriers.add(link.name)
            if not link.carrier:
                events.silent.add(link.name)
        if old is not None and old.up and not link.up:
            self._lose(old, events)
        self.by_index[link.ifindex] = link
        self.by_name[link.name] = link
        self.first_seen.setdefault(link.ifindex, self._clock())
