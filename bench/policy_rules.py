"""Other ways to enforce the same policies, as rules for ``nft``, in one family. Pure.

    CHAIN_PER_ENDPOINT   a chain for each endpoint, found by its interface, which jumps to a chain for each of its
                         policies (how Felix works)
    SET_PER_POLICY       a set of the endpoints of each policy; all of them are looked at in order

What allows sets a bit of the mark, which is looked at behind each policy. Sources of workloads and connections are
checked as felixpy does. Egress has no policy here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

CHAIN_PER_ENDPOINT, SET_PER_POLICY = "chain per endpoint", "set per policy, in order"
ALLOWED = "0x10000"

_TABLE = """
table ip other {{
	set pairs {{ type ipv4_addr . ifname; elements = {{ {pairs} }} }}
	chain prerouting {{ type filter hook prerouting priority raw; iifname "cali*" goto from-workload; }}
	chain from-workload {{ ip saddr . iifname @pairs return; drop; }}
	chain forward {{
		type filter hook forward priority filter
		ct state established,related accept
		ct state invalid drop
		oifname "cali*" goto to
		accept
	}}
{rest}
}}
"""


class Endpoint(NamedTuple):
    """``application`` is what policies select it by."""

    interface: str
    address: str
    application: str


class Policy(NamedTuple):
    """For the endpoints of an application; ``rules`` are matches of nft with their verdict, ``allow`` or ``drop``."""

    name: str
    application: str
    peers: Sequence[str]
    rules: Sequence[tuple[str, str]]


def rules(how: str, endpoints: Sequence[Endpoint], policies: Sequence[Policy]) -> str:
    """A table; in rules ``@peers`` is the set of the policy's peers."""
    pairs = ", ".join(f'{one.address} . "{one.interface}"' for one in endpoints)
    make = _chains if how == CHAIN_PER_ENDPOINT else _sets
    lines = [line for policy in policies for line in _policy(policy)]
    lines += make(endpoints, policies)
    return _TABLE.format(pairs=pairs, rest="\n".join(lines))


def _policy(policy: Policy) -> Iterator[str]:
    peers = f"elements = {{ {', '.join(policy.peers)} }}" if policy.peers else ""
    yield f"set peers-{policy.name} {{ type ipv4_addr; {peers} }}"
    yield f"chain policy-{policy.name} {{"
    for match, verdict in policy.rules:
        action = "drop" if verdict == "drop" else f"meta mark set meta mark | {ALLOWED} return"
        yield f"{match.replace('@peers', f'@peers-{policy.name}')} {action}"
    yield "}"


def _asked(policy: Policy, match: str = "") -> Iterator[str]:
    yield f"{match} jump policy-{policy.name}"
    yield f"meta mark & {ALLOWED} == {ALLOWED} accept"


def _chains(endpoints: Sequence[Endpoint], policies: Sequence[Policy]) -> Iterator[str]:
    by_application: dict[str, list[Policy]] = {}
    for policy in policies:
        by_application.setdefault(policy.application, []).append(policy)
    for one in endpoints:
        yield f"chain to-{one.interface} {{"
        for policy in by_application.get(one.application, ()):
            yield from _asked(policy)
        yield "drop\n}"
    elements = ", ".join(f'"{one.interface}" : goto to-{one.interface}' for one in endpoints)
    yield f"map endpoints {{ type ifname : verdict; elements = {{ {elements} }} }}"
    yield "chain to {\nmeta mark set meta mark & 0xfffeffff\noifname vmap @endpoints\ndrop\n}"


def _sets(endpoints: Sequence[Endpoint], policies: Sequence[Policy]) -> Iterator[str]:
    by_application: Mapping[str, list[str]] = {policy.application: [] for policy in policies}
    for one in endpoints:
        if one.application in by_application:
            by_application[one.application].append(one.address)
    for policy in policies:
        elements = ", ".join(by_application[policy.application])
        yield f"set of-{policy.name} {{ type ipv4_addr; elements = {{ {elements} }} }}"
    yield "chain to {\nmeta mark set meta mark & 0xfffeffff"
    for policy in policies:
        yield from _asked(policy, f"ip daddr @of-{policy.name}")
    yield "drop\n}"
