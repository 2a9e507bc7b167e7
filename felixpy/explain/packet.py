"""The packet that is followed, and what a rule may do to it. No I/O.

The packet is the first one of a new connection: those of established ones pass by other rules, and are not followed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct, field

from felixpy.model.net import Family, format_address

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
PROTOCOLS = {"icmp": ICMP, "ipv4": 4, "ipencap": 4, "ipip": 4, "tcp": TCP, "udp": UDP, "ipv6": 41, "gre": 47,
             "esp": 50, "ah": 51, "ipv6-icmp": ICMPV6, "icmpv6": ICMPV6, "icmp6": ICMPV6, "sctp": 132,
             "udplite": 136}  # fmt: skip
ECHO_REQUEST = {Family.V4: 8, Family.V6: 128}
EPHEMERAL_PORT = 40000
"""Source port where none is given: a client's."""


class Packet(Struct):
    """Addresses are packed; ``port`` is the destination port, None without one; no ``iif``: a packet of our own."""

    family: Family
    source: bytes
    destination: bytes
    protocol: int
    port: int | None = None
    source_port: int | None = EPHEMERAL_PORT
    iif: str = ""
    oif: str = ""
    mark: int = 0
    tracked: bool = True
    vni: int | None = None
    """Of a packet that is VXLAN: its network."""
    translated: set[str] = field(default_factory=set)
    """``snat``, ``dnat``: what conntrack has decided for this connection."""

    @property
    def icmp_type(self) -> int | None:
        return ECHO_REQUEST[self.family] if self.protocol in (ICMP, ICMPV6) else None

    def __str__(self) -> str:
        names = {number: name for name, number in reversed(PROTOCOLS.items())}
        port = f" port {self.port}" if self.port is not None else ""
        what = f"{names.get(self.protocol, f'protocol {self.protocol}')}{port}"
        return f"{format_address(self.source)} → {format_address(self.destination)} {what}"


class Action(NamedTuple):
    """What a rule does: accept, drop, reject, return, jump, goto, unknown, or ``address`` and ``port`` of a NAT."""

    kind: str
    target: str = ""
    address: bytes | None = None
    port: int | None = None


ACCEPT, DROP, REJECT, RETURN, UNKNOWN = map(Action, ("accept", "drop", "reject", "return", "unknown"))

IsLocal = Callable[[bytes], bool]
"""Whether an address is the node's own."""

IsOn = Callable[[bytes, str], bool | None]
"""Whether an address is the node's own on an interface; None: cannot be told."""


def nobody_knows(address: bytes, interface: str) -> bool | None:
    """An ``IsOn`` without facts."""
    return None


Answer = bool | Action | None
"""True: the rule goes on; False: it does not match; None: cannot be judged; an action ends the rule."""

Step = Callable[[Packet], Answer]
"""One match or statement of a rule. May change the packet's mark, nothing else."""


class Rule(Struct, frozen=True):
    """Steps in order; ``text`` is for people, and so is the ``comment`` that the rule bears."""

    steps: tuple[Step, ...]
    text: str
    comment: str = ""


class Chain(Struct):
    """A chain of rules; ``hook`` is empty unless packets enter here. ``policy`` as in the kernel."""

    name: str
    rules: list[Rule] = field(default_factory=list)
    hook: str = ""
    priority: int = 0
    is_nat: bool = False
    policy: Action = ACCEPT


class Ruleset(Struct):
    """One table of one program: chains by name, and how people call it: ``nftables table ip felixpy``."""

    name: str
    chains: dict[str, Chain] = field(default_factory=dict)


def owner(table: str, chain: str) -> str:
    """Who a chain belongs to, by the names that programs give theirs; empty if the name does not tell."""
    last = table.rsplit(" ", 1)[-1]
    if last == "felixpy" or chain.startswith("fpy-"):
        return "felixpy"
    for prefix, program in (
        ("DOCKER", "Docker"), ("KUBE-", "kube-proxy or kubelet"), ("cali-", "Calico"), ("ufw", "ufw"),
        ("CNI-", "a CNI plugin"), ("FLANNEL", "flannel"), ("LIBVIRT", "libvirt"), ("IP-MASQ", "ip-masq-agent"),
        ("CILIUM", "Cilium"),
    ):  # fmt: skip
        if chain.startswith(prefix):
            return program
    return {"firewalld": "firewalld", "kube-proxy": "kube-proxy", "calico": "Calico"}.get(last, "")
