"""Policies that come, change and go while the soak runs, and the traffic that they all allow or all deny.

Whatever stands, every policy for ingress allows port 7000, where the live traffic goes, and none allows port 7001,
which the one that is always there denies. So a question to 7000 is never lost, and nothing to 7001 ever arrives; each
datagram to it is a connection of its own, because established ones go on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

from felixpy.demo.lab import Lab
from felixpy.demo.resources import Object, v3

POLICIES = 5
TIERS = ("default", "soak")
ANSWERED, REFUSED = 7000, 7001
ROLES = ("a", "b", "c")
SUBJECTS = ("all()", "projectcalico.org/namespace == 'default'", "!has(nobody)", "role == 'a'")
ALLOWED: list[Object] = [
    {"action": "Allow", "protocol": protocol, "destination": {"ports": [ANSWERED]}} for protocol in ("TCP", "UDP")
]

Publish = Callable[[str, bytes], Awaitable[None]]


def policy(name: str, **spec: Any) -> Object:
    return v3("GlobalNetworkPolicy", name, spec)


GUARD = policy("guard", selector="all()", order=1000, types=["Ingress"], ingress=ALLOWED)
"""Stays: its tier ends with Deny for whatever it does not allow."""

NEEDED = (v3("Tier", "soak", {"order": 50, "defaultAction": "Pass"}), GUARD)


def topic(document: Object) -> str:
    kind = {"Tier": "tier", "GlobalNetworkPolicy": "policy/global"}[document["kind"]]
    return f"{kind}/{document['metadata']['name']}"


class Policies:
    """What is published of policy; ``change`` is one operation of the soak."""

    def __init__(self, lab: Lab, rng: random.Random) -> None:
        self._lab, self._rng = lab, rng
        self._published: dict[str, Object] = {topic(one): one for one in NEEDED}

    async def publish_all(self) -> None:
        """At the beginning, and to a broker that came back empty."""
        for name, document in list(self._published.items()):
            await self._lab.publish(name, json.dumps(document).encode())

    async def change(self) -> None:
        """One of the policies is there or not, with other rules, for others, at another place."""
        made = self._policy(f"soak-{self._rng.randrange(POLICIES)}")
        if self._rng.random() < 0.3:
            self._published.pop(topic(made), None)
            await self._lab.publish(topic(made), b"")
            return
        self._published[topic(made)] = made
        await self._lab.publish(topic(made), json.dumps(made).encode())

    def _policy(self, name: str) -> Object:
        rng = self._rng
        ingress = [*(self._filler() for _ in range(rng.randrange(4))), *ALLOWED]
        ingress += [self._filler() for _ in range(rng.randrange(3))]
        ways = rng.choice((["Ingress"], ["Ingress", "Egress"]))
        spec = {"selector": rng.choice(SUBJECTS), "types": ways, "ingress": ingress, "tier": rng.choice(TIERS)}
        if rng.random() < 0.8:
            spec["order"] = rng.randrange(2000)
        if "Egress" in ways:
            spec["egress"] = [self._filler(), {"action": "Allow"}]
        return policy(name, **spec)

    def _filler(self) -> Object:
        """A rule that says nothing of the ports that count."""
        rng = self._rng
        port = rng.randrange(10_000, 60_000)
        ports: list[Any] = [port, f"{port}:{port + rng.randrange(50)}", "nobody-has-this-name"]
        rule: Object = {
            "action": rng.choice(("Allow", "Deny", "Pass")),
            "protocol": rng.choice(("TCP", "UDP", "SCTP")),
            "destination": {"ports": rng.sample(ports, 2)},
        }
        if rng.random() < 0.5:
            rule["source"] = {rng.choice(("selector", "notSelector")): f"role == '{rng.choice(ROLES)}'"}
        return rule
