"""The packet-filter back-ends by name.

Invariant: exactly one of them is in use on a node. Must never say how one works: that is its own package's business.
"""

from __future__ import annotations

from enum import StrEnum


class Backend(StrEnum):
    """A way to program the packet filter."""

    NFTABLES = "nftables"
    LEGACY = "iptables-legacy"
    NFT_VARIANT = "iptables-nft"
