"""Endpoints and policies for the benchmark of policy. Pure."""

from __future__ import annotations

from typing import Any

from bench.policy_subject import NODE, Object

CALICO = "projectcalico.org/v3"
PEERS = 200


def scenario(count: int) -> str:
    """What a scenario with so many policies is called."""
    return f"policy, P={count:,}"


def calico(kind: str, name: str, spec: Object, **metadata: Any) -> Object:
    return {"apiVersion": CALICO, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def endpoint(number: int, node: str = NODE, app: str = "") -> Object:
    """One of twenty of a deployment; a peer's label is another application's."""
    spec = {
        "node": node,
        "interfaceName": f"cali{number:08}",
        "ipNetworks": [
            f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/32",
            f"fd00:48::{number >> 16:x}:{number & 65535:x}/128",
        ],
    }
    labels = {"app": app or f"app{number // 20 % 50}", "node": node}
    return calico("WorkloadEndpoint", f"w{number}", spec, namespace="default", labels=labels)


def policies(count: int) -> list[Object]:
    """Each of fifty deployments is asked by a fiftieth of them; rules name applications of peers."""
    found = []
    for number in range(count):
        source = {"selector": f"app == 'peer{number % PEERS}'"}
        rules = [
            {"action": "Allow", "protocol": "TCP", "source": source, "destination": {"ports": [80, 443]}},
            {"action": "Deny", "protocol": "UDP", "destination": {"ports": [number + 1]}},
            {"action": "Allow", "source": {"nets": [f"192.0.2.{number % 250}/32"]}},
        ]
        spec = {"selector": f"app == 'app{number % 50}'", "types": ["Ingress"], "ingress": rules, "order": number}
        found.append(calico("GlobalNetworkPolicy", f"p{number}", spec))
    return found
