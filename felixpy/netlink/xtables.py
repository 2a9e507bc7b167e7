"""What the kernel knows of xtables, asked without a tool. Must never load a table or write.

Formats: linux/netfilter/nf_tables_compat.h.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from functools import cache

from felixpy.model.net import Family
from felixpy.netlink.message import (
    Request,
    attribute,
    text_attribute,
)
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkError, NetlinkSocket

NFNL_SUBSYS_NFT_COMPAT = 11
NFPROTO = {Family.V4: 2, Family.V6: 10}


@cache
def knows_match(name: str, family: Family) -> bool:
    """Whether the kernel has a match of xtables, whose module it loads. A kernel that cannot be asked has it.

    Asked of nf_tables' compatibility layer; the modules are the same for iptables-legacy.
    """
    parts = (
        text_attribute(1, name),
        attribute(2, struct.pack(">I", 0)),  # revision: the kernel answers if it has a newer one, too
        attribute(3, struct.pack(">I", 0)),  # a match, not a target
    )
    frame = struct.pack(">BBH", NFPROTO[family], 0, 0)
    request = Request(NFNL_SUBSYS_NFT_COMPAT << 8, 0, frame + b"".join(parts))
    with contextlib.closing(NetlinkSocket(NETLINK_NETFILTER)) as netlink:
        try:
            netlink.ask(request)
        except NetlinkError as error:
            return error.errno != errno.ENOENT
        except OSError:
            return True
    return True
