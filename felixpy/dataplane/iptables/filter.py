"""What both iptables variants share: reading by the ``-save`` tool, sets by netlink, rules planned per table.

Invariant: set members need no process and no rule; chains are compared as canonical text. A variant adds only how a
plan is committed. Must never write a table in which nothing of ours changes.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from felixpy.calc.policy.carrier import MarkBits
from felixpy.calc.policy.classes import Direction
from felixpy.calc.policy.layout import class_of_chain
from felixpy.calc.rule import ChainKey, Chains, RuleKey, Table
from felixpy.calc.rules import MAP_CHAINS
from felixpy.config import ChainInsertMode
from felixpy.dataplane.class_members import PAIRS
from felixpy.dataplane.iptables.address_maps import AddressMaps, is_map_member
from felixpy.dataplane.iptables.layout import CHAIN_PREFIX
from felixpy.dataplane.iptables.plan import TablePlan, foreign_chains, plan_removal, plan_write, present_chains
from felixpy.dataplane.iptables.render import render_chains
from felixpy.dataplane.iptables.save_text import SavedTable, counted_packets, parse_save, set_users
from felixpy.dataplane.iptables.sets import IpSets, SetsInUseError
from felixpy.dataplane.iptables.tools import Tools, tool_name
from felixpy.dataplane.packet_filter import (
    CountedPackets,
    FilterChange,
    FilterCounts,
    FilterError,
    FilterKey,
    FilterState,
    Member,
    Part,
    RenderedChain,
)
from felixpy.model.net import Family
from felixpy.netlink.message import Message, Request
from felixpy.netlink.transport import NetlinkSocket
from felixpy.slices import in_slices

FRESH_SECONDS = 0.1
MAX_NAMED = 5
"""Chains of others that one sentence names."""
_CLASS_RULE = re.compile(rf"-m mark --mark (0x[0-9a-f]+)/0x[0-9a-f]+ -g {CHAIN_PREFIX}(\S+)")


class IptablesFilter(ABC):
    """A ``PacketFilter`` for one family (see ``felixpy.dataplane.packet_filter``)."""

    variant: ClassVar[str]
    marks_pairs = True
    is_silent = False

    def __init__(
        self,
        family: Family,
        *,
        insert_mode: ChainInsertMode = ChainInsertMode.INSERT,
        max_ipset_size: int = 1048576,
        tools: Tools | None = None,
        patient: bool = False,
    ) -> None:
        """``patient``: no update waits for what is done here, so other programs may be waited for."""
        self.family = family
        self.patient = patient
        self.sets = IpSets(family, max_ipset_size)
        self.maps = AddressMaps(family)
        self.tools = tools or Tools()
        self._insert_mode = insert_mode
        self._foreign_chains: tuple[str, ...] = ()
        self._foreign_sets: tuple[str, ...] = ()
        self._hooked: set[tuple[str, str]] = set()
        """Tables and built-in chains in which our jumps stand, or stood when we last looked."""
        self._saved: tuple[dict[str, SavedTable], float] = {}, 0.0
        self._saves = self._save_errors = 0
        self._writes = self._write_errors = 0
        self._lines: Counter[str] = Counter()

    def render(self, chains: Chains) -> dict[RuleKey, RenderedChain]:
        """Rules as text, the form in which the ``-save`` tool prints them. Pure."""
        return render_chains(self.family, chains)

    def use_marks(self, marks: MarkBits) -> None:
        """Take the bits in which the members of pairs carry their class."""
        self.sets.masks = {name: marks.of(direction).mask for name, direction in PAIRS.items()}

    def class_numbers(
        self, chains: Mapping[RuleKey, RenderedChain], marks: MarkBits
    ) -> dict[tuple[Direction, str], int]:
        """From the rules that find a class by its mark."""
        numbers = {}
        for rules in chains.values():
            for rule in rules:
                if (told := _CLASS_RULE.fullmatch(rule)) and (found := class_of_chain(told[2])):
                    numbers[found] = int(told[1], 16) >> marks.of(found[0]).shift
        return numbers

    async def read(self, part: Part = Part.ALL) -> FilterState:
        """Read what is ours; the members of sets only if asked for.

        Raises:
            NetlinkError, FilterError: the kernel or the tool refused to tell.
        """
        moment = self.maps.moment
        saved = await self._save()
        self._saved = saved, time.monotonic()
        chains = present_chains(saved, self._insert_mode)
        translated, differs = self.maps.take(chains, moment)
        self._hooked |= {(table, chain) for table, content in saved.items() for chain in content.jumps}
        headers = self.sets.headers()
        usable = self.sets.usable(headers)
        if not usable or differs:
            part = Part.ALL  # sets tell nothing: who removed some has emptied others
        elements, data = await self.sets.read(headers) if part is Part.ALL else (set(), {})
        self._foreign_chains = tuple(foreign_chains(saved))
        self._foreign_sets = tuple(self.sets.foreign(headers))
        return FilterState(
            chains=chains,
            elements=elements | translated.keys(),
            containers=usable,
            part=part,
            foreign=self._foreign_chains + self._foreign_sets,
            sets=self.sets.policy_sets(headers),
            data=data | translated,
        )

    @property
    def socket(self) -> NetlinkSocket:
        """The socket that set members are written by."""
        return self.sets.socket

    def counts(self) -> FilterCounts:
        """What was done so far."""
        return FilterCounts(
            writes=self._writes,
            write_errors=self._write_errors,
            reads=self._saves,
            read_errors=self._save_errors,
            lines=self._lines,
            set_calls=self.sets.socket.sends + self.sets.socket.dumps_sent,
            set_errors=self.sets.errors,
            set_lines=self.sets.socket.messages_sent,
            all_sets=self.sets.total,
        )

    async def decisions(self) -> list[CountedPackets]:
        """By rules that end in a verdict, or in the end of a direction; one process of the ``-save`` tool."""
        text = await self.save("-c")
        return [one async for some in in_slices(counted_packets(text)) for one in some]

    def ports(self) -> tuple[int, ...]:
        """None: rules are written by a process or by libiptc, and IP sets send no notifications."""
        return ()

    def notify(self, message: Message) -> Iterable[tuple[Member, bool]] | Part:
        """Nothing: the kernel tells nothing of legacy tables and IP sets; the NFT variant knows better."""
        return ()

    def looks_changed(self) -> bool:
        """No: the kernel tells of rules; the Legacy variant knows better."""
        return False

    async def create_containers(self) -> None:
        """Make the sets.

        Raises:
            NetlinkError, FilterError
        """
        try:
            await self.sets.create()
        except SetsInUseError as error:
            raise await self._with_users(error) from None

    async def write(self, change: FilterChange) -> Mapping[FilterKey, str]:
        """Write one change: sets and members in, chains, other marks of members, members out, sets out.

        What rules will ask is there before they are; a member that only gets another mark, which is another class, has
        to wait for the rules of that class. Sets that ``read`` found foreign go with any write; chains only with one
        that writes chains, or with an empty change, because they need a process.

        Raises:
            OSError: the netlink socket broke.
        """
        errors: dict[FilterKey, str] = {}
        made = {key: comment for key, comment in change.sets.items() if comment is not None}
        errors.update(self.sets.make(made).items())
        added, removed, translated = change.add, change.remove, _translated(change)
        if translated:
            added, removed = ([key for key in keys if key not in translated] for keys in (added, removed))
        later = [key for key in added if key in change.changed]
        early = [key for key in added if key not in change.changed] if later else added
        errors.update((await self.sets.add(early, change.data)).items())
        if change.chains or translated or (self._foreign_chains and not change):
            errors.update(await self._write_rules(change, translated))
        errors.update((await self.sets.add(later, change.data)).items())
        errors.update((await self.sets.remove(removed)).items())
        errors.update(self.sets.destroy(key for key, comment in change.sets.items() if comment is None).items())
        if self._foreign_sets:
            self.sets.destroy_unused(self._foreign_sets)
            self._foreign_sets = ()
        return errors

    def member_requests(self, change: FilterChange) -> list[Request] | None:
        """Messages of a change of members, unless a set has to go with it, a map is a chain, or a prefix is held as its
        halves.
        """
        if self._foreign_sets or change.sets or _translated(change):
            return None
        return self.sets.requests(change.add, change.remove, change.data)

    def send_members(self, requests: Sequence[Request]) -> bool:
        """Send such messages; whether the kernel took all of them.

        Raises:
            OSError: the netlink socket broke.
        """
        return self.sets.send(requests)

    async def remove_rules(self) -> None:
        """Remove our jumps and chains, leaving the sets (which the other variant shares). Idempotent.

        Raises:
            FilterError: the rules of a table could not be removed.
        """
        saved = await self._save()
        errors = await self._commit(plan_removal(saved))
        hidden = [table for table, content in saved.items() if content.hidden]
        errors |= {table: self._hidden_words(table) for table in hidden and await self._holding_ours(hidden)}
        if errors:
            words = "; ".join(f"{table}: {text}" for table, text in errors.items())
            raise FilterError(f"{self.family} rules could not be removed by iptables-{self.variant} ({words})")

    async def remove_all(self) -> None:
        """Remove our jumps, chains and sets of this family and nothing else. Idempotent.

        The variants share the sets, so the rules of the other one go too: they would keep the sets in use.

        Raises:
            NetlinkError, FilterError
        """
        await self.remove_rules()
        for variant in IptablesFilter.__subclasses__():
            if variant is not type(self):
                other = variant(self.family, tools=self.tools, patient=self.patient)
                try:
                    await other.remove_rules()
                finally:
                    other.close()
        try:
            await self.sets.destroy_all()
        except SetsInUseError as error:
            raise await self._with_users(error) from None

    async def _with_users(self, error: SetsInUseError) -> SetsInUseError:
        """The same with what helps: whose rules use the sets, and where they stand, in either variant."""
        ours, others = False, []
        for variant in IptablesFilter.__subclasses__():
            one = self if isinstance(self, variant) else variant(self.family, tools=self.tools)
            try:
                text = await one.save()
            except (OSError, FilterError):  # it cannot be asked: then nobody is named
                continue
            finally:
                if one is not self:
                    one.close()
            for table, chain in set_users(text, error.names):
                if chain.startswith(CHAIN_PREFIX):
                    ours = True
                else:
                    name = tool_name(self.family, variant.variant, "save")
                    others.append(f"chain {chain} of table {table} ({name})")
        if others:
            more = ", …" if len(others) > MAX_NAMED else ""
            advice = f"remove what names them first, in {', '.join(others[:MAX_NAMED])}{more}"
        elif ours:
            advice = "they are of another version of felixpy: stop the agent and run 'felixpy cleanup'"
        else:
            name = tool_name(self.family, "nft", "save")
            advice = f"find the rules that name them, as with {name} or 'ipset list -t', and remove those first"
        return SetsInUseError(error.names, f"{error}; {advice}")

    def close(self) -> None:
        """Close the socket; the kernel stays as it is."""
        self.sets.close()

    async def _write_rules(self, change: FilterChange, translated: set[Member]) -> dict[FilterKey, str]:
        """Write chains, and as such the maps of addresses. Returns words for what was refused of both."""
        chains = self.maps.chains(change)
        with self.maps.writing(change) as refused:
            errors: dict[RuleKey, str]
            try:
                errors = await self._write_chains(chains)
            except FilterError as error:  # the rules fail; members of sets need no tool and go on
                errors = dict.fromkeys(chains, str(error))
            refused.update(errors)
        words: dict[FilterKey, str] = {key: text for key, text in errors.items() if key in change.chains}
        if lost := [text for key, text in errors.items() if key in MAP_CHAINS]:
            words |= dict.fromkeys(translated, lost[0])
        return words

    async def _write_chains(self, chains: Mapping[RuleKey, RenderedChain | None]) -> dict[RuleKey, str]:
        saved = await self._present()
        hidden = {table for table, content in saved.items() if content.hidden}
        errors = {table.value: self._hidden_words(table) for table in Table if table in hidden}
        seen = {key: rules for key, rules in chains.items() if key.table not in hidden}
        for key in seen:
            if key.is_hook and isinstance(key, ChainKey):
                change = self._hooked.discard if seen[key] is None else self._hooked.add
                change((key.table, key.name))
        errors |= await self._commit(plan_write(seen, saved, self._insert_mode))
        if not errors.keys() - hidden:
            self._foreign_chains = ()
        return {key: errors[key.table] for key in chains if key.table in errors}

    def _hidden_words(self, table: str) -> str:
        name, prefix = tool_name(self.family, self.variant, "save"), "ip" if self.family is Family.V4 else "ip6"
        return (
            f"{name} cannot read the table {table}, into which somebody put a rule with nft; find it with"
            f" 'nft list table {prefix} {table}' and move it into a table of its own, or set FELIX_NFTABLESMODE=Enabled"
        )

    async def _holding_ours(self, tables: Sequence[str]) -> list[str]:
        """Those of some tables, hidden from the tool, in which there are chains of ours; all, if nobody can tell."""
        return list(tables)

    async def _present(self) -> dict[str, SavedTable]:
        """What the read that found a difference has just seen, so that a repair reads once; else a new look."""
        (saved, at), self._saved = self._saved, ({}, 0.0)
        return saved if time.monotonic() - at < FRESH_SECONDS else await self._save()

    async def _save(self) -> dict[str, SavedTable]:
        return parse_save(await self.save())

    async def save(self, *arguments: str) -> str:
        """What the ``-save`` tool of this variant prints, nothing where the kernel has no table of it.

        Raises:
            FilterError: the tool is missing, or failed.
        """
        if not self._in_use():
            return ""
        name = tool_name(self.family, self.variant, "save")
        self._saves += 1
        try:
            finished = await self.tools.run(name, *arguments)
            if finished.code:
                raise FilterError(f"{name} failed, so the rules cannot be read: {finished.error}")
        except FilterError:
            self._save_errors += 1
            raise
        return finished.output

    def _count_lines(self, done: Iterable[TablePlan]) -> None:
        self._lines.update({plan.table: plan.lines for plan in done})

    @abstractmethod
    def _in_use(self) -> bool:
        """Whether the kernel has tables of this variant; without any, nothing can be ours and no tool is needed."""

    @abstractmethod
    async def _commit(self, plans: Sequence[TablePlan]) -> dict[str, str]:
        """Apply plans, each table as a whole or not at all. Returns words by table for what was refused."""


def _translated(change: FilterChange) -> set[Member]:
    """Members of maps of addresses: those are chains here."""
    return set(filter(is_map_member, (*change.add, *change.remove)))
