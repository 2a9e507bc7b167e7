"""What a packet costs where policies are asked: the quickest batch of each turn, all subjects in turn in one run.

The last five policies, of three rules, are for the receiver's deployment, the others for the node's other deployments.
A new connection is allowed by the last rule of the last policy, a denied one by none. Packets go from one workload of
the node to another (``bench/wire.py``), in IPv4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench import policy_rules
from bench.policy_objects import calico, endpoint, scenario
from bench.policy_rules import CHAIN_PER_ENDPOINT, SET_PER_POLICY
from bench.policy_subject import Object, children
from bench.results import FELIXPY, Cell, Results

SIZE = 1_000
COUNTS = (0, 10, 1_000)
TURNS, QUICK_TURNS = 40, 10
METRICS = {
    "new connection": {"new": 9_999, "arrive": True},
    "denied": {"new": 9_998, "arrive": False},
    "established": {"established": 9_999, "arrive": True},
}
OF_ONE = 5
"""Policies that are for one endpoint."""
FIRST = 70_000
SETTINGS = {"IptablesMarkMask": "0xffffff00"}
"""200 deployments are as many classes, and the usual mask has 125."""


async def measure(results: Results, say: Callable[[str], None], backends: Sequence[str], *, quick: bool) -> None:
    """All back-ends and numbers of policies."""
    for backend in backends:
        for count in COUNTS:
            say(f"policy {backend}: packets with {count:,} policies")
            await _measure(results, backend, count, QUICK_TURNS if quick else TURNS)


async def _measure(results: Results, backend: str, count: int, turns: int) -> None:
    others = (CHAIN_PER_ENDPOINT, SET_PER_POLICY) if count and backend == "nftables" else ()
    wanted: dict[str, tuple[str, Mapping[str, str]]] = {FELIXPY: (backend, SETTINGS)}
    wanted |= {one: ("", {}) for one in others}
    objects, (sender, receiver) = _objects(count)
    wire = [[one["spec"]["interfaceName"], _address(one)] for one in (sender, receiver)]
    async with children(wanted) as subjects:
        for name, child in subjects.items():
            await child.ask(wire=wire)
            if name == FELIXPY:
                await child.ask(start=objects)
            else:
                await child.ask(rules=_rules(name, count, objects))
        for _ in range(turns):
            for name, child in subjects.items():
                for metric, asked in METRICS.items():
                    if count or metric != "denied":
                        spent = min(await child.ask(**asked)) * 1e6
                        cell = Cell(backend, "dual", SIZE)
                        results.add(cell, scenario(count), metric, spent, subject=name, unit="µs")


def _deployments(count: int) -> int:
    return max(count // OF_ONE, 1)


def _objects(count: int) -> tuple[list[Object], tuple[Object, Object]]:
    """Endpoints and policies; and the endpoints that packets go from and to."""
    names = _deployments(count)
    crowd = [endpoint(number, app=f"app{number % names}") for number in range(1, SIZE - 1)]
    sender, receiver = endpoint(FIRST, app="client"), endpoint(FIRST + 1, app=f"app{names - 1}")
    source = str(sender["spec"]["ipNetworks"][0])
    policies = []
    for number in range(count):
        last = source if number == count - 1 else f"192.0.2.{number % 250}/32"
        rules = [
            {"action": "Allow", "protocol": "TCP", "source": {"selector": f"app == 'app{(number + 1) % names}'"},
             "destination": {"ports": [80, 443]}},
            {"action": "Deny", "protocol": "UDP", "destination": {"ports": [number + 1]}},
            {"action": "Allow", "protocol": "UDP", "source": {"nets": [last]}, "destination": {"ports": [9_999]}},
        ]  # fmt: skip
        spec = {"selector": f"app == 'app{number // OF_ONE}'", "types": ["Ingress"], "ingress": rules, "order": number}
        policies.append(calico("GlobalNetworkPolicy", f"p{number}", spec))
    return [*crowd, sender, receiver, *policies], (sender, receiver)


def _rules(how: str, count: int, objects: Sequence[Object]) -> str:
    """The same policies as rules of a comparator."""
    names = _deployments(count)
    endpoints = [
        policy_rules.Endpoint(one["spec"]["interfaceName"], _address(one), one["metadata"]["labels"]["app"])
        for one in objects
        if one["kind"] == "WorkloadEndpoint"
    ]
    policies = []
    for number, one in enumerate(one for one in objects if one["kind"] == "GlobalNetworkPolicy"):
        last: Any = one["spec"]["ingress"][2]["source"]["nets"][0]
        peers = [each.address for each in endpoints if each.application == f"app{(number + 1) % names}"]
        rules = [
            ("meta l4proto tcp ip saddr @peers tcp dport { 80, 443 }", "allow"),
            (f"meta l4proto udp udp dport {number + 1}", "drop"),
            (f"meta l4proto udp ip saddr {last.split('/')[0]} udp dport 9999", "allow"),
        ]
        policies.append(policy_rules.Policy(f"p{number}", f"app{number // OF_ONE}", peers, rules))
    return policy_rules.rules(how, endpoints, policies)


def _address(one: Object) -> str:
    return str(one["spec"]["ipNetworks"][0]).partition("/")[0]
