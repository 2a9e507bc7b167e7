"""The nft variant of iptables: rules written by ``iptables-nft-restore``.

Invariant: one restore per write, with every table in one document; only when it fails, one per table, so that a table
that is refused does not hold up the others. Must never use the ``xtables`` lock: nf_tables transactions need none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from errno import EINVAL, EOPNOTSUPP
from typing import ClassVar

from felixpy.calc.entries import ElementKey
from felixpy.calc.rules import Table
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.iptables.layout import CHAIN_PREFIX
from felixpy.dataplane.iptables.plan import TablePlan, restore_text
from felixpy.dataplane.iptables.tools import tool_name
from felixpy.model.net import Family
from felixpy.netlink import nftables as nft
from felixpy.netlink.transport import NETLINK_NETFILTER, Message, NetlinkError, NetlinkSocket

IPTABLES_TABLES = frozenset({"raw", "mangle", "nat", "filter", "security"})


class NftVariantFilter(IptablesFilter):
    """Rules through ``iptables-nft-restore`` and ``ip6tables-nft-restore``."""

    variant: ClassVar[str] = "nft"

    def notify(self, message: Message) -> Iterable[tuple[ElementKey, bool]] | None:
        """Chains, rules and built-in chains that carry our jumps; what other programs do to theirs is of no interest.

        Our own restores are told of too, because a process writes them: the read that follows confirms them.
        """
        command = message.type & 0xFF
        if message.type >> 8 != nft.NFNL_SUBSYS_NFTABLES or message.payload[0] != nft.NFPROTO[self.family]:
            return ()
        if command in (nft.NEWRULE, nft.DELRULE, nft.NEWCHAIN, nft.DELCHAIN) and self._ours(message, command):
            return None
        return None if command == nft.DELTABLE and nft.table_of(message, command) in IPTABLES_TABLES else ()

    @staticmethod
    def _ours(message: Message, command: int) -> bool:
        if nft.table_of(message, command) not in set(Table):
            return False
        chain = nft.chain_of(message, command)
        return chain.startswith(CHAIN_PREFIX) or chain.isupper()

    def _in_use(self) -> bool:
        return not IPTABLES_TABLES.isdisjoint(table_names(self.family))

    async def _commit(self, plans: Sequence[TablePlan]) -> dict[str, str]:
        if not plans or not await self._restore(plans):
            return {}
        errors = {}
        for plan in plans:
            error = await self._restore([plan])
            if error:
                errors[plan.table] = error
        return errors

    async def _restore(self, plans: Sequence[TablePlan]) -> str:
        name = tool_name(self.family, self.variant, "restore")
        finished = await self.tools.run(name, "--noflush", stdin=restore_text(plans))
        if not finished.code:
            return ""
        return finished.error or f"{name} ended with code {finished.code}"


def table_names(family: Family) -> set[str]:
    """Names of all nftables tables of a family; the nft variant's own are those of ``IPTABLES_TABLES``.

    Raises:
        OSError: the kernel cannot be asked.
    """
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    try:
        messages = netlink.dump_all(nft.dump(nft.GETTABLE, family))
    except NetlinkError as error:
        if error.errno not in (EINVAL, EOPNOTSUPP):  # nfnetlink's answers for a kernel without nf_tables
            raise
        return set()
    finally:
        netlink.close()
    return {nft.message_attributes(message)[1].rstrip(b"\0").decode(errors="replace") for message in messages}
