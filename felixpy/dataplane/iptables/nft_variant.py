"""The nft variant of iptables: rules written by ``iptables-nft-restore``, and put back by netlink if they are known.

What the kernel told of is read by netlink, too, so that a repair starts no process (see ``nft_rules``).
Invariant: one restore per write, with every table in one document; only when it fails, one per table, so that a table
that is refused does not hold up the others. Must never use the ``xtables`` lock: nf_tables transactions need none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from felixpy.calc.entries import ElementKey
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.iptables.layout import CHAIN_PREFIX
from felixpy.dataplane.iptables.nft_requests import plan_requests
from felixpy.dataplane.iptables.nft_rules import IPTABLES_TABLES, KnownRules, Look, look, table_names
from felixpy.dataplane.iptables.plan import TablePlan, restore_text
from felixpy.dataplane.iptables.save_text import SavedTable
from felixpy.dataplane.iptables.tools import tool_name
from felixpy.dataplane.packet_filter import FilterError, Part
from felixpy.model.net import Family
from felixpy.netlink import nftables as nft
from felixpy.netlink.expressions import NFPROTO
from felixpy.netlink.message import Message
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkSocket


class NftVariantFilter(IptablesFilter):
    """Rules through ``iptables-nft-restore`` and ``ip6tables-nft-restore``."""

    variant: ClassVar[str] = "nft"

    def __init__(self, family: Family, **options: Any) -> None:
        super().__init__(family, **options)
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        self._known = KnownRules()
        self._seen: Look | None = None
        self._learned = False
        self._told = False

    def notify(self, message: Message) -> Iterable[tuple[ElementKey, bool]] | Part:
        """Chains, rules and built-in chains that carry our jumps; what other programs do to theirs is of no interest.

        kube-proxy changes its own (KUBE-SVC-…) at each change of a Service.
        Our own restores are told of too, because a process writes them: the read that follows confirms them.
        """
        command = message.type & 0xFF
        if message.type >> 8 != nft.NFNL_SUBSYS_NFTABLES or message.payload[0] != NFPROTO[self.family]:
            return ()
        changed = command in (nft.NEWRULE, nft.DELRULE, nft.NEWCHAIN, nft.DELCHAIN) and self._ours(message, command)
        if changed or (command == nft.DELTABLE and nft.table_of(message, command) in IPTABLES_TABLES):
            self._told = True
            return Part.RULES
        return ()

    def _ours(self, message: Message, command: int) -> bool:
        chain = nft.chain_of(message, command)
        return chain.startswith(CHAIN_PREFIX) or (nft.table_of(message, command), chain) in self._hooked

    def close(self) -> None:
        super().close()
        self._netlink.close()

    async def _save(self) -> dict[str, SavedTable]:
        """By the tool, and by netlink alone after a notification of what somebody else did to rules that are known."""
        told, self._told = self._told, False
        seen = self._seen = await look(self._netlink, self.family)
        if not seen.rules:
            return {}
        if told and self._learned and (saved := self._known.saved(seen)) is not None:
            return saved
        saved = await super()._save()
        if seen == await look(self._netlink, self.family):
            self._known.learn(seen, saved, self._set_indices())
            self._learned = True
        else:
            self._seen = None
        return saved

    async def remove_rules(self) -> None:
        """As in the other variant, but no tool is needed where nothing is ours."""
        if await self._holding_ours([*IPTABLES_TABLES]):
            await super().remove_rules()

    async def _holding_ours(self, tables: Sequence[str]) -> list[str]:
        seen = await look(self._netlink, self.family)
        return [one for one in tables if any(chain.startswith(CHAIN_PREFIX) for chain in seen.rules.get(one, ()))]

    def _in_use(self) -> bool:
        return not IPTABLES_TABLES.isdisjoint(table_names(self._netlink, self.family))

    def _set_indices(self) -> dict[str, int] | None:
        """The kernel's numbers of our sets, None if it does not tell them."""
        try:
            indices = {name: header.kernel_index for name, header in self.sets.headers().items()}
        except FilterError:  # no IP sets, so no rule names one
            return {}
        return None if -1 in indices.values() else indices

    async def _commit(self, plans: Sequence[TablePlan]) -> dict[str, str]:
        if not plans or self._put_back(plans) or not await self._restore(plans):
            return {}
        errors = {}
        for plan in plans:
            error = await self._restore([plan])
            if error:
                errors[plan.table] = error
        return errors

    def _put_back(self, plans: Sequence[TablePlan]) -> bool:
        """Write by netlink, in one transaction, what was all seen before. Returns whether the kernel took it.

        A set that was made anew may have another index: its old one in a rule could be that of another set.
        """
        seen, self._seen = self._seen, None
        indices = self._set_indices()
        if seen is None or indices is None or indices != self._known.set_indices:
            return False
        try:
            requests = [one for plan in plans for one in plan_requests(self.family, plan, seen, self._known)]
        except LookupError:
            return False
        self._writes += 1
        if self._netlink.transact(nft.batch(requests), batch=True):
            self._write_errors += 1  # the tool tries it next, and has the words
            return False
        self._count_lines(plans)
        return True

    async def _restore(self, plans: Sequence[TablePlan]) -> str:
        self._learned = False
        name = tool_name(self.family, self.variant, "restore")
        self._writes += 1
        try:
            finished = await self.tools.run(name, "--noflush", stdin=restore_text(plans))
        except FilterError:
            self._write_errors += 1
            raise
        if not finished.code:
            self._count_lines(plans)
            return ""
        self._write_errors += 1
        return finished.error or f"{name} ended with code {finished.code}"
