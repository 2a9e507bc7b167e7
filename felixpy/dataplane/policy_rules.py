"""Routing policy rules that lead into WireGuard's tables.

Ours are those with our protocol number (FRA_PROTOCOL, Linux 4.17), of the kind that felixpy makes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from felixpy.calc.entries import PolicyRuleKey
from felixpy.dataplane.ownership import Ownership
from felixpy.dataplane.table import MISSING, KeyedTable
from felixpy.model.net import FAMILIES
from felixpy.netlink.message import Message
from felixpy.netlink.rule import RTM_DELRULE, KernelRule, decode_rule, rule_dump_request
from felixpy.netlink.transport import NetlinkError, NetlinkSocket


class PolicyRuleTable:
    """Keyed table of rules with its way to read."""

    def __init__(self, ownership: Ownership, clock: Callable[[], float]) -> None:
        self.ownership = ownership
        self._clock = clock
        self.table: KeyedTable[PolicyRuleKey, None, KernelRule] = KeyedTable("rules of routing", self._resolve)

    def _resolve(self, key: PolicyRuleKey, value: None) -> KernelRule:
        return KernelRule(key.family, key.priority, key.table, key.mark, self.ownership.device_route_protocol)

    async def read(self, socket: NetlinkSocket) -> dict[PolicyRuleKey, KernelRule]:
        """Our rules of both families.

        Raises:
            NetlinkError: the kernel refused.
        """
        found: dict[PolicyRuleKey, KernelRule] = {}
        for family in FAMILIES:
            try:
                rules = await socket.decode_sliced(rule_dump_request(family), decode_rule)
            except NetlinkError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    raise
                continue  # the kernel has no such family, or no rules
            for rule in rules:
                if rule is not None and self._is_ours(rule):
                    found[_key(rule)] = rule
        return found

    def notify(self, message: Message) -> None:
        """Take a notification of a rule."""
        rule = decode_rule(message)
        if rule is None or not self._is_ours(rule):
            return
        key = _key(rule)
        self.table.observe(key, MISSING if message.type == RTM_DELRULE else rule, self._clock())

    def _is_ours(self, rule: KernelRule) -> bool:
        return rule.protocol == self.ownership.device_route_protocol


def _key(rule: KernelRule) -> PolicyRuleKey:
    return PolicyRuleKey(rule.family, rule.priority, rule.table, rule.mark)
