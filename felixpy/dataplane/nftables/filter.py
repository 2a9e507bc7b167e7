"""The nftables back-end for one family: table ``felixpy``, written in one transaction per change.

Invariant: everything in the table is ours; everything outside is never touched. The socket stays open for the life of
the back-end, because closing one after a delete waits for a kernel grace period (DESIGN §2.5).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from felixpy.calc.entries import ADDRESS_MAPS, SetType
from felixpy.calc.policy.carrier import MarkBits, number_of
from felixpy.calc.policy.classes import Direction
from felixpy.calc.policy.layout import class_of_chain
from felixpy.calc.rule import ChainKey, Chains, ClassElement, RuleKey
from felixpy.dataplane.nftables import elements, render
from felixpy.dataplane.nftables.chain_editor import ChainEditor
from felixpy.dataplane.nftables.reading import TableReader
from felixpy.dataplane.nftables.render import chain_key
from felixpy.dataplane.nftables.seen import EVERY_MAP, TABLE, Seen, set_name
from felixpy.dataplane.nftables.steps import Step, StepMaker, after
from felixpy.dataplane.packet_filter import (
    CountedPackets,
    FilterChange,
    FilterCounts,
    FilterKey,
    FilterState,
    Member,
    Part,
    RenderedChain,
)
from felixpy.model.net import Family
from felixpy.netlink import nftables as nft
from felixpy.netlink.expressions import NFPROTO
from felixpy.netlink.message import Message, Request
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkError, NetlinkSocket, Refusal


class NftablesFilter:
    """``PacketFilter`` over nfnetlink."""

    marks_pairs = False
    is_silent = False

    def __init__(self, family: Family) -> None:
        self.family = family
        self.socket = NetlinkSocket(NETLINK_NETFILTER)
        self._reader = TableReader(self.socket, family)
        self._steps = StepMaker(family)
        self._editor = ChainEditor(self.socket, family)
        self._seen = Seen()
        self._generation = 0
        self._write_errors = self._read_errors = 0

    def counts(self) -> FilterCounts:
        return FilterCounts(self.socket.sends, self._write_errors, self.socket.dumps_sent, self._read_errors)

    def close(self) -> None:
        self.socket.close()

    def render(self, chains: Chains) -> dict[RuleKey, RenderedChain]:
        return dict(render.render_chains(chains, self.family))

    def use_marks(self, marks: MarkBits) -> None:
        """Members carry none here."""

    def class_numbers(
        self, chains: Mapping[RuleKey, RenderedChain], marks: MarkBits
    ) -> dict[tuple[Direction, str], int]:
        numbers = {}
        for key, rendered in chains.items():
            if isinstance(key, ClassElement) and rendered:
                chain = chain_key(rendered[0])
                if chain is not None and (found := class_of_chain(chain.name)) is not None:
                    of = marks.of(found[0])
                    numbers[found] = number_of(key.mark >> of.shift & of.largest, of.bits)
        return numbers

    async def read(self, part: Part = Part.ALL) -> FilterState:
        """Read the table, or its chains and rules alone, in slices; again if rules or sets were written meanwhile.

        A layout that is not ours (a set of another type, a hook elsewhere) reads as empty and is replaced by the next
        write, in the same transaction.
        """
        while True:
            generation = self._generation
            try:
                seen = await self._reader.look(part, self._seen)
            except OSError:
                self._read_errors += 1
                raise
            if generation == self._generation:
                break
        self._seen = seen
        self._editor.forget()
        members, seen.elements = seen.elements, set()  # to keep them would cost as much as the table that they go into
        data, seen.data = seen.data, {}
        if seen.replace:
            return FilterState()
        chains: dict[RuleKey, RenderedChain] = {key: tuple(rules) for key, rules in seen.chains.items()}
        seen.chains = {key: [] for key in chains}
        return FilterState(
            chains=chains,
            elements=members,
            containers=seen.is_whole,
            part=seen.part,
            sets=set(seen.policy_sets),
            data=data,
        )

    async def create_containers(self) -> None:
        """Nothing to do ahead: ``write`` puts the table and its sets into the transaction that needs them."""

    async def write(self, change: FilterChange) -> Mapping[FilterKey, str]:
        """Write one change in one transaction, after one that makes the chains which the other leads to.

        The kernel asks anew at each lookup which generation is in force, but once per packet for the rules. So a packet
        that is on its way may find an element as new as the chain that it names, and in that chain the rules of before:
        none, and whoever comes to the end of a chain passes.

        Chains that are edited where they stand are as old as the packet is, and what leads to them stays.
        """
        edits = self._editor.edits(change, self._seen)
        rest = change.without(edits.keys) if edits.keys else change
        made = self._made_first(rest)
        if made and not self._commit(self._steps.steps(made, self._seen)):
            change, rest = (_less_made(one, made) for one in (change, rest))
        steps = self._steps.steps(rest, self._seen, edits=edits.steps)
        self._editor.forget(change.chains)
        if not self._commit(steps):
            self._editor.learn(edits, steps)
            return {}
        return self._commit_singly(change)

    def _made_first(self, change: FilterChange) -> FilterChange:
        """Of a change the new chains, and the sets that they may ask, if elements may lead to them."""
        made = FilterChange()
        if self._seen.is_whole and any(isinstance(key, ClassElement) for key in change.chains):
            chains = change.chains.items()
            made.chains = {
                key: rules
                for key, rules in chains
                if isinstance(key, ChainKey)
                and rules is not None
                and not key.is_hook
                and key not in self._seen.standing_chains
            }
            made.sets = {key: comment for key, comment in change.sets.items() if comment is not None and made.chains}
        return made

    def member_requests(self, change: FilterChange) -> list[Request] | None:
        if not self._seen.is_whole or change.sets:
            return None
        return [step.request for step in self._steps.member_steps(change)]

    def send_members(self, requests: Sequence[Request]) -> bool:
        """In one transaction: of a refused one nothing is done."""
        return not self._transact(requests)

    async def remove_all(self) -> None:
        try:
            if self._reader.table_flags() is None:
                return
        except NetlinkError as error:
            if error.errno not in nft.NOT_IN_KERNEL:
                raise
            return
        refusals = self.socket.transact(nft.batch([nft.delete_table(self.family, TABLE)]), batch=True)
        for refusal in refusals.values():
            if refusal.errno != errno.ENOENT:
                raise NetlinkError(refusal.errno, f"cannot delete nft table {TABLE}: {refusal}")
        self._seen = Seen()
        self._editor.forget()
        self._generation += 1

    def looks_changed(self) -> bool:
        """No: what changes is told."""
        return False

    def ports(self) -> tuple[int, ...]:
        return (self.socket.port,)

    def notify(self, message: Message) -> Iterable[tuple[Member, bool]] | Part:
        """Members that a notification says came (True) or went (False), or what to read again."""
        command = message.type & 0xFF
        if message.type >> 8 != nft.NFNL_SUBSYS_NFTABLES or message.payload[0] != NFPROTO[self.family]:
            return ()
        if command == nft.NEWGEN or nft.table_of(message, command) != TABLE:
            return ()
        if command in (nft.NEWRULE, nft.DELRULE, nft.NEWCHAIN, nft.DELCHAIN):
            return Part.RULES
        if command not in (nft.NEWSETELEM, nft.DELSETELEM):
            return Part.ALL
        if (text := nft.set_of(message)) in EVERY_MAP:
            return Part.RULES
        name = set_name(text)
        if name is None or name.type in (SetType.NET, SetType.NET_INTERFACE) or name in ADDRESS_MAPS:
            return Part.ALL  # of an interval the kernel tells each end by itself, and of a map there is more to know
        try:
            found = elements.decode(name, self.family, nft.decode_elements(message))
        except elements.NotOursError:
            return Part.ALL
        return [(key, command == nft.NEWSETELEM) for key in found]

    async def decisions(self) -> list[CountedPackets]:
        """By rules with a counter."""
        return [
            CountedPackets(key.name, one.comment, one.denied, one.packets)
            for one in await self.socket.decode_sliced(self._reader.in_table(nft.GETRULE), nft.decode_counted)
            if one is not None and one.table == TABLE and (key := chain_key(one.chain)) is not None
        ]

    def _commit(self, steps: list[Step]) -> dict[int, Refusal]:
        """Send one transaction, if there is anything to send. Returns refusals by step index (-1: the frame)."""
        if not steps:
            return {}
        refusals = self._transact([step.request for step in steps])
        if not refusals:
            self._remember(steps)
        return refusals

    def _transact(self, requests: Sequence[Request]) -> dict[int, Refusal]:
        """One transaction. Returns refusals by index (-1: the frame)."""
        try:
            refusals = self.socket.transact(nft.batch(requests), batch=True)
        except OSError:
            self._write_errors += 1
            raise
        if refusals:
            self._write_errors += 1
        return {index - 1: refusal for index, refusal in refusals.items()}

    def _remember(self, steps: list[Step]) -> None:
        """Note what stands now; a read that was under way starts again if it was more than members."""
        others = [step for step in steps if not step.only_members]
        if others or not self._seen.is_whole:
            self._generation += len(others)
            self._seen = after(self._seen, others)

    def _commit_singly(self, change: FilterChange) -> dict[FilterKey, str]:
        """The kernel refused the transaction: repeat it with a message per element, without the culprits."""
        refused: dict[FilterKey, str] = {}
        while True:
            steps = self._steps.steps(change, self._seen, per_message=1)
            refusals = self._commit(steps)
            if not refusals:
                return refused
            culprits = [(steps[index], why) for index, why in refusals.items() if 0 <= index < len(steps)]
            keys = {key for step, _ in culprits for key in step.keys}
            if any(isinstance(key, ChainKey | ClassElement) for key in keys):
                keys |= set(change.chains)  # chains jump to each other: one layout, one fate
            if not keys:  # the kernel refused the transaction as such, or our table or sets
                words = str(next(iter(refusals.values())))
                return refused | {key: words for step in steps for key in step.keys}
            for step, why in culprits:
                if not (step.gone and why.errno == errno.ENOENT):
                    lost = change.chains if isinstance(step.keys[0], ChainKey | ClassElement) else step.keys
                    refused.update({key: str(why) for key in lost})
            change = change.without(keys)


def _less_made(change: FilterChange, made: FilterChange) -> FilterChange:
    """A change less chains and sets that stand already: its members, which are many, are not looked at."""
    chains = {key: rules for key, rules in change.chains.items() if key not in made.chains}
    sets = {key: comment for key, comment in change.sets.items() if key not in made.sets}
    return replace(change, chains=chains, sets=sets)
