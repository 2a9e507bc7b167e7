"""Ranges of which no address is one machine's in the whole cluster."""

from __future__ import annotations

from felixpy.model.net import Net

_RANGES = tuple(
    (Net.parse(cidr), name)
    for cidr, name in (
        ("169.254.0.0/16", "link-local range"),  # 169.254.1.1 is every workload's gateway
        ("127.0.0.0/8", "loopback range"),
        ("224.0.0.0/4", "multicast range"),
        ("0.0.0.0/32", "unspecified address"),
        ("255.255.255.255/32", "broadcast address"),
        ("fe80::/10", "link-local range"),
        ("ff00::/8", "multicast range"),
        ("::/80", "range of ::, ::1 and IPv4-mapped addresses"),
    )
)
"""240.0.0.0/4 is in use for pods."""

_FIRST_BYTES = frozenset(
    (len(net.packed), net.packed[0] + more) for net, _ in _RANGES for more in range(1 << max(0, 8 - net.length))
)


def special_range(net: Net) -> str:
    """The range that a prefix or an address overlaps, in words; empty if none.

    A route for such a prefix would take traffic that is not one workload's, the node's own multicast for example.
    """
    if net.length >= 8 and (len(net.packed), net.packed[0]) not in _FIRST_BYTES:
        return ""
    return next((f"the {name} {special}" for special, name in _RANGES if special.overlaps(net)), "")
