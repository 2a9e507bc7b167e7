"""Routing policy rules: which table is asked for which packets, in the order of their priorities.

Numbers are from linux/fib_rules.h. pyroute2 is the oracle of these in the tests.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from felixpy.model.net import Family
from felixpy.netlink.message import NLM_F_CREATE, NLM_F_EXCL, Message, Request, attribute, attributes

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 6, 10, 15, 16, 21
FR_ACT_TO_TBL = 1
FIB_RULE_INVERT = 2

_RULE = struct.Struct("=BBBBBBBBI")
_U32 = struct.Struct("=I")
_KNOWN = frozenset({FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL})
_SILENT = frozenset({14, 19})
"""FRA_SUPPRESS_PREFIXLEN, which the kernel tells of every rule; FRA_L3MDEV, which is 0 where it says nothing."""


class KernelRule(NamedTuple):
    """A rule that sends packets without a mark to a table; ``protocol`` says who made it (0: nobody said)."""

    family: Family
    priority: int
    table: int
    mark: int
    protocol: int


def rule_request(rule: KernelRule, *, delete: bool = False) -> Request:
    """Make a rule, or remove it."""
    table = rule.table if rule.table < 256 else 0
    header = _RULE.pack(rule.family, 0, 0, 0, table, 0, 0, FR_ACT_TO_TBL, FIB_RULE_INVERT)
    parts = [
        header,
        attribute(FRA_PRIORITY, _U32.pack(rule.priority)),
        attribute(FRA_FWMARK, _U32.pack(rule.mark)),
        attribute(FRA_TABLE, _U32.pack(rule.table)),
        attribute(FRA_FWMASK, _U32.pack(rule.mark)),
        attribute(FRA_PROTOCOL, bytes((rule.protocol,))),
    ]
    if delete:
        return Request(RTM_DELRULE, 0, b"".join(parts))
    return Request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, b"".join(parts))


def rule_dump_request(family: Family) -> Request:
    return Request(RTM_GETRULE, 0, _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))


def decode_rule(message: Message) -> KernelRule | None:
    """A rule of the kind that felixpy makes; None for every other."""
    family, dst, src, tos, _, _, _, action, flags = _RULE.unpack_from(message.payload)
    if family not in (Family.V4, Family.V6) or dst or src or tos or action != FR_ACT_TO_TBL:
        return None
    found = dict(attributes(message.payload, _RULE.size))
    if not flags & FIB_RULE_INVERT or not found.keys() <= _KNOWN | _SILENT:
        return None
    priority, mark, table, mask = (
        _U32.unpack(found.get(kind, bytes(4)))[0] for kind in (FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK)
    )
    if mark != mask or not mark:
        return None
    return KernelRule(Family(family), priority, table, mark, found.get(FRA_PROTOCOL, b"\0")[0])
