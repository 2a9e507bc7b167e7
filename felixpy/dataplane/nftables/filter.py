"""The nftables back-end for one family: table ``felixpy``, written in one transaction per change.

Invariant: everything in the table is ours; everything outside is never touched. The socket stays open for the life of
the back-end, because closing one after a delete waits for a kernel grace period (DESIGN §2.5).
"""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple

from felixpy.calc.entries import SET_TYPES, ElementKey, SetName, SetType
from felixpy.calc.rules import ChainKey, Chains, Table
from felixpy.dataplane.nftables import elements, render
from felixpy.dataplane.packet_filter import FilterChange, FilterState, RenderedChain
from felixpy.model.net import Family
from felixpy.netlink import nftables as nft
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkError, NetlinkSocket, Refusal, Request, attribute

TABLE = "felixpy"
ELEMENTS_PER_MESSAGE = 400  # an attribute holds 64 KiB; an IPv6 interval takes up to 120 bytes


class _Step(NamedTuple):
    """A request and the keys that are lost if the kernel refuses it; ``gone`` accepts ENOENT as success."""

    request: Request
    keys: tuple[ChainKey | ElementKey, ...]
    gone: bool = False


class NftablesFilter:
    """``PacketFilter`` over nfnetlink."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.socket = NetlinkSocket(NETLINK_NETFILTER)
        self._table_exists = False
        self._replace_table = False
        self._sets: set[SetName] = set()
        self._chains: set[ChainKey] = set()
        self._tainted: set[SetName] = set()

    def close(self) -> None:
        self.socket.close()

    def render(self, chains: Chains) -> dict[ChainKey, RenderedChain]:
        return dict(render.render_chains(chains, self.family))

    async def read(self) -> FilterState:
        """Read the table. A layout that is not ours (a set of another type, a hook elsewhere) reads as empty and
        is replaced by the next write, in the same transaction."""
        self._sets, self._chains, self._tainted = set(), set(), set()
        self._table_exists = self._read_table()
        self._replace_table = False
        if not self._table_exists:
            return FilterState()
        self._replace_table = not (self._read_sets() and self._read_chains())
        if self._replace_table:
            self._sets, self._chains = set(), set()
            return FilterState()
        return FilterState(
            chains=self._read_rules(),
            elements=self._read_elements(),
            containers=self._sets == set(SetName) and not self._tainted,
        )

    async def create_containers(self) -> None:
        """Nothing to do ahead: ``write`` puts the table and its sets into the transaction that needs them."""

    async def write(self, change: FilterChange) -> Mapping[ChainKey | ElementKey, str]:
        if not self._commit(self._steps(change)):
            return {}
        return self._commit_singly(change)

    async def remove_all(self) -> None:
        if not self._read_table():
            return
        refusals = self.socket.transact(nft.batch([nft.delete_table(self.family, TABLE)]), batch=True)
        for refusal in refusals.values():
            if refusal.errno != errno.ENOENT:
                raise NetlinkError(refusal.errno, f"cannot delete nft table {TABLE}: {refusal}")
        self._table_exists = False
        self._sets, self._chains = set(), set()

    # --- reading -----------------------------------------------------------------------------------------------

    def _in_table(self, command: int) -> Request:
        return nft.dump(command, self.family, attribute(1, nft.name(TABLE)))

    def _read_table(self) -> bool:
        tables = self.socket.dump_all(nft.dump(nft.GETTABLE, self.family))
        return any(nft.message_attributes(message)[1] == nft.name(TABLE) for message in tables)

    def _read_sets(self) -> bool:
        for message in self.socket.dump_all(self._in_table(nft.GETSET)):
            table, shape = nft.decode_set(message)
            if table != TABLE or shape.flags & nft.NFT_SET_ANONYMOUS:
                continue
            if shape.name not in set(SetName) or shape != elements.set_shape(SetName(shape.name), self.family):
                return False
            self._sets.add(SetName(shape.name))
        return True

    def _read_chains(self) -> bool:
        for message in self.socket.dump_all(nft.dump(nft.GETCHAIN, self.family)):
            table, name, hook, policy = nft.decode_chain(message)
            if table != TABLE:
                continue
            key = _chain_key(name)
            if key is None or hook != render.HOOKS.get(key) or policy != nft.NF_ACCEPT:
                return False
            self._chains.add(key)
        return True

    def _read_rules(self) -> dict[ChainKey, RenderedChain]:
        rules: dict[ChainKey, list[nft.NftRule]] = {key: [] for key in self._chains}
        for message in self.socket.dump_all(self._in_table(nft.GETRULE)):
            table, chain, rule = nft.decode_rule(message)
            key = _chain_key(chain)
            if table == TABLE and key in rules:
                rules[key].append(rule)
        return {key: tuple(listed) for key, listed in rules.items()}

    def _read_elements(self) -> set[ElementKey]:
        found: set[ElementKey] = set()
        for name in self._sets:
            messages = self.socket.dump_all(nft.get_elements(self.family, TABLE, name))
            try:
                found |= elements.decode(name, self.family, (e for m in messages for e in nft.decode_elements(m)))
            except elements.NotOursError:
                self._tainted.add(name)
        return found

    # --- writing -----------------------------------------------------------------------------------------------

    def _steps(self, change: FilterChange, per_message: int = ELEMENTS_PER_MESSAGE) -> list[_Step]:
        if not change and not self._tainted:
            return []
        return [
            *self._container_steps(),
            *self._chain_steps(change),
            *self._element_steps(change, per_message),
            *self._delete_chain_steps(change),
        ]

    def _container_steps(self) -> list[_Step]:
        steps = []
        if self._replace_table:
            steps.append(_Step(nft.delete_table(self.family, TABLE), ()))
        if not self._table_exists or self._replace_table:
            steps.append(_Step(nft.new_table(self.family, TABLE), ()))
        for number, name in enumerate(SetName, start=1):
            if name not in self._sets:
                shape, fields = elements.set_shape(name, self.family), elements.set_fields(name, self.family)
                steps.append(_Step(nft.new_set(self.family, TABLE, shape, number, fields), ()))
        steps += [_Step(nft.flush_set(self.family, TABLE, name), ()) for name in self._tainted]
        return steps

    def _chain_steps(self, change: FilterChange) -> list[_Step]:
        """New chains, then the old rules out and the new rules in: within one transaction nobody sees the gap."""
        steps = []
        for key in change.chains:
            if key not in self._chains and change.chains[key] is not None:
                request = nft.new_chain(self.family, TABLE, render.chain_name(key), render.HOOKS.get(key))
                steps.append(_Step(request, (key,)))
        for key in change.chains:
            if key in self._chains:
                steps.append(_Step(nft.flush_chain(self.family, TABLE, render.chain_name(key)), (key,), gone=True))
        for key, rules in change.chains.items():
            for rule in rules or ():
                steps.append(_Step(nft.new_rule(self.family, TABLE, render.chain_name(key), rule), (key,)))
        return steps

    def _delete_chain_steps(self, change: FilterChange) -> list[_Step]:
        return [
            _Step(nft.delete_chain(self.family, TABLE, render.chain_name(key)), (key,))
            for key, rules in change.chains.items()
            if rules is None and key in self._chains
        ]

    def _element_steps(self, change: FilterChange, per_message: int) -> list[_Step]:
        """Interval sets refuse overlaps even within a transaction, so their removals go before additions."""
        by_set: defaultdict[tuple[int, SetName], list[ElementKey]] = defaultdict(list)
        for key in change.remove:
            early = SET_TYPES[key.set] is not SetType.HOST_INTERFACE
            by_set[0 if early else 2, key.set].append(key)
        for key in change.add:
            by_set[1, key.set].append(key)
        steps = []
        for (order, name), keys in sorted(by_set.items()):
            command = nft.NEWSETELEM if order == 1 else nft.DELSETELEM
            for chunk in _chunks(keys, per_message):
                request = nft.set_elements(command, self.family, TABLE, name, map(elements.encode, chunk))
                steps.append(_Step(request, tuple(chunk), gone=command == nft.DELSETELEM))
        return steps

    def _commit(self, steps: list[_Step]) -> dict[int, Refusal]:
        """Send one transaction, if there is anything to send. Returns refusals by step index (-1: the frame)."""
        if not steps:
            return {}
        refusals = self.socket.transact(nft.batch([step.request for step in steps]), batch=True)
        if not refusals:
            self._remember(steps)
        return {index - 1: refusal for index, refusal in refusals.items()}

    def _remember(self, steps: Iterable[_Step]) -> None:
        self._table_exists, self._replace_table = True, False
        self._sets = set(SetName)
        self._tainted = set()
        for step in steps:
            command = step.request.type & 0xFF
            chains = {key for key in step.keys if isinstance(key, ChainKey)}
            if command == nft.NEWCHAIN:
                self._chains |= chains
            elif command == nft.DELCHAIN:
                self._chains -= chains

    def _commit_singly(self, change: FilterChange) -> dict[ChainKey | ElementKey, str]:
        """The kernel refused the transaction: repeat it with a message per element, without the culprits."""
        refused: dict[ChainKey | ElementKey, str] = {}
        while True:
            steps = self._steps(change, per_message=1)
            refusals = self._commit(steps)
            if not refusals:
                return refused
            culprits = [(steps[index], why) for index, why in refusals.items() if 0 <= index < len(steps)]
            keys = {key for step, _ in culprits for key in step.keys}
            if any(isinstance(key, ChainKey) for key in keys):
                keys |= set(change.chains)  # chains jump to each other: one layout, one fate
            if not keys:  # the kernel refused the transaction as such, or our table or sets
                words = str(next(iter(refusals.values())))
                return refused | {key: words for step in steps for key in step.keys}
            for step, why in culprits:
                if not (step.gone and why.errno == errno.ENOENT):
                    lost = change.chains if isinstance(step.keys[0], ChainKey) else step.keys
                    refused.update({key: str(why) for key in lost})
            change = change.without(keys)


def _chain_key(name: str) -> ChainKey | None:
    """Inverse of ``render.chain_name``; None for a chain that we would never make."""
    table, _, rest = name.partition("-")
    return ChainKey(Table(table), rest) if table in set(Table) and rest else None


def _chunks(keys: list[ElementKey], size: int) -> Iterable[list[ElementKey]]:
    iterator = iter(keys)
    while chunk := list(islice(iterator, size)):
        yield chunk
