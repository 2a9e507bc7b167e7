"""The IP sets of one family: create, read, add and remove members, by netlink and without a process.

Invariant: members are read back as they were written. ``hash:net`` refuses a prefix of length 0, so one is held as
its two halves there and read back whole; ``allowed-sources`` needs members that nobody declares
(``felixpy.dataplane.iptables.allowed_sources``), which are not read back. Must never touch a set without our prefix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from errno import EINVAL, ENOENT, EOPNOTSUPP
from itertools import repeat
from types import MappingProxyType
from typing import Final

from felixpy.calc.entries import STANDING_SETS, ElementKey, SetName, SetType, set_type
from felixpy.calc.policy.classes import MemberKey
from felixpy.dataplane.iptables.allowed_sources import AllowedSources, declared_by
from felixpy.dataplane.iptables.layout import carries_mark, ipset_type, set_name, set_prefix
from felixpy.dataplane.packet_filter import FilterError, SetKey
from felixpy.dataplane.packet_filter import Member as Key
from felixpy.model.net import Family, Net
from felixpy.netlink import ipset
from felixpy.netlink.columns import tuples
from felixpy.netlink.ipset import Member, SetHeader
from felixpy.netlink.message import Request
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkError, NetlinkSocket, Refusal
from felixpy.slices import in_slices

_NO_MARKS: Final[Mapping[Key, int]] = MappingProxyType({})
MEMBERS_PER_SEND = 500  # about 10 ms: the loop may run between two sends
_IN_USE = (4100, 4109)  # IPSET_ERR_BUSY, IPSET_ERR_REFERENCED
_FULL = 4352  # IPSET_ERR_HASH_FULL: of the whole set as of one prefix
INTERFACES_PER_PREFIX = 64  # AHASH_MAX_SIZE: they share one hash bucket
_RELEASE_ATTEMPTS, _RELEASE_WAIT_SECONDS = 40, 0.05
_SOURCES = SetName.ALLOWED_SOURCES


class NoIpSetsError(FilterError):
    """The kernel has no IP sets, so there are none of ours."""


class SetsInUseError(FilterError):
    """Rules use sets that should go. Of both variants, whichever met it; what to do next depends on whose they are."""

    def __init__(self, names: Sequence[str], words: str) -> None:
        super().__init__(words)
        self.names = tuple(names)


class IpSets:
    """All sets of one family. ``socket`` counts what was sent; ``total`` is everybody's sets at the last look."""

    def __init__(self, family: Family, max_elements: int) -> None:
        self.masks: dict[SetName, int] = {}
        """The bits that the mark of a member of a set of pairs is of."""
        self.socket = NetlinkSocket(NETLINK_NETFILTER)
        self._family = family
        self._max_elements = max_elements
        # What of (0.0.0.0/0, 0.0.0.0/1, 128.0.0.0/1) and their IPv6 twins each set of prefixes was told to hold.
        self._widest: dict[str, set[Net]] = {}
        self._sources = AllowedSources()
        self._source_changes = 0
        self._left_out: set[Key] = set()
        self.errors = self.total = 0

    def close(self) -> None:
        self.socket.close()

    def headers(self) -> dict[str, SetHeader]:
        """Headers of the sets with our prefix, by name.

        Raises:
            FilterError: the kernel has no IP sets.
            NetlinkError: the kernel refused.
        """
        prefix = set_prefix(self._family)
        try:
            found = [ipset.decode_header(message) for message in self.socket.dump_all(ipset.list_headers())]
        except NetlinkError as error:
            if error.errno not in (EINVAL, EOPNOTSUPP):  # nfnetlink's answers for a subsystem that is not there
                self.errors += 1
                raise
            raise NoIpSetsError(
                "the kernel has no IP sets; load its module ip_set or set FELIX_NFTABLESMODE=Enabled"
            ) from None
        self.total = len(found)
        return {header.name: header for header in found if header and header.name.startswith(prefix)}

    def usable(self, headers: dict[str, SetHeader]) -> bool:
        """Whether every set exists with its type, family and at least the wanted size."""
        return all(self._fits(name, headers.get(set_name(self._family, name))) for name in STANDING_SETS)

    def policy_sets(self, headers: dict[str, SetHeader]) -> set[SetKey]:
        """The sets that the calculation named, of those that have the type that their name says."""
        found = set()
        for kernel_name, header in headers.items():
            name = self._own_name(kernel_name)
            if name is not None and name not in STANDING_SETS and self._is_like(name, header):
                found.add(SetKey(str(name)))
        return found

    def misfits(self) -> list[str]:
        """Names of standing sets that are there with a type that they do not have in this version.

        Raises:
            FilterError, NetlinkError: as of ``headers``.
        """
        headers, wanted = self.headers(), {set_name(self._family, name): name for name in STANDING_SETS}
        return sorted(name for name in wanted.keys() & headers.keys() if not self._is_like(wanted[name], headers[name]))

    def foreign(self, headers: dict[str, SetHeader]) -> list[str]:
        """Names with our prefix that are no set of the layout."""
        standing = {set_name(self._family, name) for name in STANDING_SETS}
        ours = standing | {set_name(self._family, key.name) for key in self.policy_sets(headers)}
        return sorted(headers.keys() - ours)

    async def read(self, headers: dict[str, SetHeader]) -> tuple[set[Key], dict[ElementKey, int]]:
        """Members of all our sets of the right type, and the marks that they carry.

        Raises:
            NetlinkError: the kernel refused.
        """
        elements: set[Key] = set()
        marks: dict[ElementKey, int] = {}
        for name in (*STANDING_SETS, *(SetName(key.name) for key in self.policy_sets(headers))):
            header = headers.get(set_name(self._family, name))
            fits = header and self._is_like(name, header)
            if header and fits:
                changes = self._source_changes
                try:
                    carried: dict[ElementKey, int] = {}
                    members = self._join_halves(name, await self._members(name, header.name, carried))
                except NetlinkError as error:
                    if error.errno != ENOENT or name in STANDING_SETS:
                        raise
                    continue  # it went while the others were read
                if name is _SOURCES:
                    members = await self._without_implied(members, carried, changes)
                    carried = {key: carried[key] for key in members if key in carried}
                marks |= carried
                async for some in in_slices(members, 64):
                    elements.update(some)
            elif name is _SOURCES:
                self._sources = AllowedSources()
        return elements, marks

    def _own_name(self, kernel_name: str) -> SetName | None:
        try:
            return SetName(kernel_name.removeprefix(set_prefix(self._family)))
        except ValueError:
            return None

    def _is_like(self, name: SetName, header: SetHeader) -> bool:
        return (header.type, header.family) == (ipset_type(name), self._family)

    def make(self, keys: Iterable[SetKey]) -> dict[SetKey, str]:
        """Make sets that the calculation names. Returns the kernel's words for those that it refused."""
        wanted = list(keys)
        requests = [self._create(SetName(key.name), set_name(self._family, key.name)) for key in wanted]
        return self._refused(wanted, requests, 1)

    def destroy(self, keys: Iterable[SetKey]) -> dict[SetKey, str]:
        """Destroy sets that no rule asks any more; they are empty even if the kernel still holds them for a while."""
        unwanted = list(keys)
        names = [set_name(self._family, key.name) for key in unwanted]
        requests = [one for name in names for one in (ipset.flush(name), ipset.destroy(name))]
        return self._refused(unwanted, requests, 2)

    def _refused(self, keys: Sequence[SetKey], requests: Sequence[Request], each: int) -> dict[SetKey, str]:
        if not requests:
            return {}
        refusals = self.socket.transact(requests)
        self.errors += bool(refusals)
        return {
            keys[index // each]: ipset.words(refusal) for index, refusal in refusals.items() if refusal.errno != ENOENT
        }

    async def create(self) -> None:
        """Make missing sets; replace those of another type or too small, keeping members that fit.

        Raises:
            NetlinkError: the kernel refused.
            SetsInUseError: a set of another type bears our name and rules use it.
        """
        headers = self.headers()
        for name in STANDING_SETS:
            header = headers.get(set_name(self._family, name))
            if header is None:
                self._do(self._create(name, set_name(self._family, name)))
            elif not self._fits(name, header):
                await self._replace(name, header)

    async def add(self, keys: Sequence[Key], marks: Mapping[Key, int] = _NO_MARKS) -> dict[Key, str]:
        """Add members, or give them another mark. Returns the kernel's words for those that it refused."""
        for key in keys:
            if _is_wide(key):
                self._widest.setdefault(key.set, set()).add(key.net)
        errors = await self._send(ipset.add, [(key, member) for key in keys for member in self._added(key, marks)])
        if errors:
            # What is not in the kernel implies nothing, and nobody would remove what came for it.
            await self.remove([key for key in errors if key.set is _SOURCES])
        return errors

    async def remove(self, keys: Sequence[Key]) -> dict[Key, str]:
        """Remove members. Returns the kernel's words for those that it refused."""
        for key in keys:
            if _is_wide(key):
                self._widest.setdefault(key.set, set()).discard(key.net)
        still_held = {(name, half) for name, nets in self._widest.items() for net in nets for half in _halves(net)}
        pairs = [
            (key, member)
            for key in keys
            for member in self._removed(key)
            if not (_is_wide(key) and (key.set, member.net) in still_held)
        ]
        return await self._send(ipset.delete, pairs)

    def requests(
        self, added: Sequence[Key], removed: Sequence[Key], marks: Mapping[Key, int] = _NO_MARKS
    ) -> list[Request] | None:
        """Messages that add and remove members; None if ``add`` and ``remove`` have to do it: one is no member by
        itself (``_is_wide``), or they are more than one send. To add and remove the same afterwards does no harm.
        """
        if any(map(_is_wide, (*added, *removed))):
            return None
        found: list[Request] = []
        for key in added:
            name = set_name(self._family, key.set)
            found += [ipset.add(name, member) for member in self._added(key, marks)]
        for key in removed:
            name = set_name(self._family, key.set)
            found += [ipset.delete(name, member) for member in self._removed(key)]
        return found if len(found) <= MEMBERS_PER_SEND else None

    def send(self, requests: Sequence[Request]) -> bool:
        """Send messages of this or the other family; whether the kernel took all of them.

        Raises:
            OSError: the socket broke.
        """
        try:
            refused = bool(self.socket.transact(requests))
        except OSError:
            self.errors += 1
            raise
        self.errors += refused
        return not refused

    def destroy_unused(self, names: Sequence[str]) -> None:
        """Destroy sets; one that rules still use is left for a later time."""
        self.socket.transact([ipset.destroy(name) for name in names])

    async def destroy_all(self) -> None:
        """Destroy every set with our prefix of this family.

        Waits for the kernel where it must: nf_tables releases a deleted rule's sets only after a grace period.

        Raises:
            NetlinkError: the kernel refused.
            SetsInUseError: rules still use a set.
        """
        try:
            names = list(self.headers())
        except NoIpSetsError:
            return
        for _ in range(_RELEASE_ATTEMPTS):
            refusals = self.socket.transact([ipset.destroy(name) for name in names])
            for refusal in refusals.values():
                if refusal.errno not in (*_IN_USE, ENOENT):
                    raise NetlinkError(refusal.errno, ipset.words(refusal))
            names = [names[index] for index, refusal in refusals.items() if refusal.errno != ENOENT]
            if not names:
                self._widest.clear()
                self._sources = AllowedSources()
                return
            await asyncio.sleep(_RELEASE_WAIT_SECONDS)
        raise SetsInUseError(names, f"the IP sets {', '.join(names)} are in use by rules of another program")

    async def _members(self, name: SetName, kernel_name: str, marks: dict[ElementKey, int] | None = None) -> list[Key]:
        """Members of a set; ``marks`` takes what they carry, 0 where it is not of the bits that it should be of."""
        messages = await self.socket.dump_sliced(ipset.list_members(kernel_name))
        keys: list[Key] = []
        async for some in in_slices(messages, 1):
            for members in filter(None, map(ipset.decode_members, some)):
                nets, interfaces, protocols, ports, carried, masks = zip(*members, strict=True)
                if name not in STANDING_SETS:
                    keys += tuples(MemberKey, repeat(str(name)), nets, protocols, ports)
                    continue
                pairs = list(tuples(ElementKey, repeat(name), nets, interfaces))
                keys += pairs
                if marks is not None and carries_mark(name):
                    mask = self.masks.get(name, 0)
                    found = zip(pairs, carried, masks, strict=True)
                    marks.update((key, one) for key, one, of in found if one and of == mask)
        return keys

    def _join_halves(self, name: SetName, members: list[Key]) -> list[Key]:
        if name.type is not SetType.NET:
            return members
        whole = Net(bytes(self._family.bits // 8), 0)
        halves = set(_halves(whole))
        if not halves <= {key.net for key in members}:
            self._widest[name] = {key.net for key in members if _is_wide(key)}
            return members
        if self._widest.get(name, set()) >= halves:  # told to hold each half for itself
            return members
        self._widest[name] = {whole}
        wide = ElementKey(name, whole) if name in STANDING_SETS else MemberKey(str(name), whole)
        return [wide, *(key for key in members if key.net not in halves)]

    def _added(self, key: Key, marks: Mapping[Key, int]) -> list[Member]:
        """The members that the kernel needs for a key."""
        mark = marks.get(key, 0)
        if isinstance(key, MemberKey) or key.set is not _SOURCES:
            return [self._marked(key, member, mark) for member in _members_of(key)] if mark else _members_of(key)
        self._source_changes += 1
        self._left_out.discard(key)
        found = self._sources.add(key.net, key.interface, mark)
        return [self._marked(key, Member(net, interface), its) for net, interface, its in found]

    def _marked(self, key: Key, member: Member, mark: int) -> Member:
        return member._replace(mark=mark, mask=self.masks[SetName(key.set)]) if mark else member

    def _removed(self, key: Key) -> list[Member]:
        """The members that it needs for a key no longer."""
        if isinstance(key, MemberKey) or key.set is not _SOURCES:
            return _members_of(key)
        self._source_changes += 1
        return [Member(*pair) for pair in self._sources.remove(key.net, key.interface)]

    async def _without_implied(self, members: list[Key], marks: Mapping[ElementKey, int], changes: int) -> list[Key]:
        """What is believed of the members of ``allowed-sources``; ``changes`` is their count before they were read.

        A key of which implied members are missing is left out, so that it will be written again with them. If it was
        not by the next reading, nobody wants it: it is believed then, so that it will be removed.
        """
        declared, incomplete = await declared_by(
            {(key.net, key.interface): marks.get(key, 0) for key in members if isinstance(key, ElementKey)}
        )
        if changes == self._source_changes:
            self._sources = declared
            missing: set[Key] = {ElementKey(_SOURCES, *pair) for pair in incomplete}
            self._left_out = missing - self._left_out
        # else something was written meanwhile, and what was read is neither before nor after it
        believed: list[Key] = []
        async for some in in_slices(list(self._sources), 64):
            believed += [ElementKey(_SOURCES, *pair) for pair in some]
        return [key for key in believed if key not in self._left_out] if self._left_out else believed

    def _words(self, key: Key, member: Member, refusal: Refusal) -> str:
        if refusal.errno == _FULL and key.set is _SOURCES and self._sources.users(member.net) > INTERFACES_PER_PREFIX:
            return (
                f"an IP set takes at most {INTERFACES_PER_PREFIX} interfaces for a prefix, and {member.net} has them;"
                " set FELIX_NFTABLESMODE=Enabled, or let fewer workloads of this node use it"
            )
        return ipset.words(refusal)

    async def _send(self, encode: Callable[[str, Member], Request], pairs: list[tuple[Key, Member]]) -> dict[Key, str]:
        errors: dict[Key, str] = {}
        for start in range(0, len(pairs), MEMBERS_PER_SEND):
            if start:
                await asyncio.sleep(0)
            part = pairs[start : start + MEMBERS_PER_SEND]
            try:
                refusals = self.socket.transact(
                    [encode(set_name(self._family, key.set), member) for key, member in part]
                )
            except OSError:
                self.errors += 1
                raise
            if refusals:
                self.errors += 1
            for index, refusal in refusals.items():
                errors[part[index][0]] = self._words(*part[index], refusal)
        return errors

    def _fits(self, name: SetName, header: SetHeader | None) -> bool:
        return (
            header is not None
            and self._is_like(name, header)
            and header.max_elements >= self._max_elements
            and (header.marks or not carries_mark(name))
        )

    def _create(self, name: SetName, kernel_name: str) -> Request:
        kind = ipset_type(name)
        answer = self.socket.dump_all(ipset.type_revisions(kind, self._family))
        revision = ipset.decode_revision(answer[0], kind) if answer else 0
        marks = carries_mark(name)
        return ipset.create(kernel_name, kind, self._family, revision, self._max_elements, marks=marks)

    async def _replace(self, name: SetName, old: SetHeader) -> None:
        """Swap a set that does not fit for a new one: rules that use it see one or the other, never none."""
        temporary = f"{old.name}-new"
        self.socket.transact([ipset.destroy(temporary)])  # left over if an earlier replacement was interrupted
        self._do(self._create(name, temporary))
        if (old.type, old.family) == (ipset_type(name), self._family):
            keys = await self._members(name, old.name)
            members = [member for key in keys for member in _members_of(key)]
            for start in range(0, len(members), MEMBERS_PER_SEND):
                self._do(*(ipset.add(temporary, member) for member in members[start : start + MEMBERS_PER_SEND]))
        if not self.socket.transact([ipset.destroy(old.name)]):
            self._do(ipset.rename(temporary, old.name))
            return
        refusals = self.socket.transact([ipset.swap(temporary, old.name), ipset.destroy(temporary)])
        if 0 in refusals:
            raise SetsInUseError(
                [old.name],
                f"the IP set {old.name} has the type {old.type}, and rules use it, so it cannot be replaced"
                f" ({ipset.words(refusals[0])})",
            )

    def _do(self, *requests: Request) -> None:
        for refusal in self.socket.transact(requests).values():
            self.errors += 1
            raise NetlinkError(refusal.errno, ipset.words(refusal))


def _is_wide(key: Key) -> bool:
    return key.net.length <= 1 and set_type(key.set) is SetType.NET


def _members_of(key: Key) -> list[Member]:
    if _is_wide(key):
        return [Member(half) for half in _halves(key.net)]
    if isinstance(key, MemberKey):
        return [Member(key.net, "", key.protocol, key.port)]
    return [Member(key.net, key.interface)]


def _halves(net: Net) -> list[Net]:
    if net.length:
        return [net]
    size = len(net.packed)
    return [Net(bytes(size), 1), Net(b"\x80" + bytes(size - 1), 1)]
