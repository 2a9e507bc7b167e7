"""The pools of Calico's documentation of dual stack, pasted: IPIP for IPv4 and nothing for IPv6, in one cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from felixpy.demo.patience import wait_until
from tests.kernel import run
from tests.netns import enter_new_network, enter_private_namespaces
from tests.underlay.lab import N1, N2, Lab, Spec, node, tries, v3, workload

PATIENCE_S = 120.0


class Pasted(Spec):
    """Addresses in the pools of the sample."""

    __slots__ = ()

    @property
    def workload6(self) -> str:
        return f"2001::{self.number}:1"


INSTALLATION = {
    "apiVersion": "operator.tigera.io/v1",
    "kind": "Installation",
    "metadata": {"name": "default"},
    "spec": {
        "calicoNetwork": {
            "ipPools": [
                {
                    "blockSize": 26,
                    "cidr": "10.48.0.0/21",
                    "encapsulation": "IPIP",
                    "natOutgoing": "Enabled",
                    "nodeSelector": "all()",
                },
                {
                    "blockSize": 122,
                    "cidr": "2001::00/64",
                    "encapsulation": "None",
                    "natOutgoing": "Enabled",
                    "nodeSelector": "all()",
                },
            ]
        }
    },
}
"""As Calico's documentation of dual stack has it, to be pasted."""


@pytest.fixture
def pasted() -> Iterator[Lab]:
    enter_private_namespaces()
    enter_new_network()
    found = Lab((Pasted(*N1), Pasted(*N2)))
    try:
        yield found
    finally:
        found.close()


def test_the_installation_of_the_documentation_carries_packets_as_pasted(pasted: Lab) -> None:
    one, other = pasted.specs
    pasted.put(INSTALLATION)
    for spec in pasted.specs:
        pasted.put(node(spec), workload(spec))
        for cidr in (f"10.48.{spec.number}.0/26", f"2001::{spec.number}:0/122"):
            spec_of = {"cidr": cidr, "affinity": f"host:{spec.name}"}
            pasted.put(v3("IPAMBlock", re.sub(r"[./:]", "-", cidr), spec_of))
    pasted.start()
    for family in (4, 6):
        wait_until(
            lambda family=family: pasted.reaches(one, other, family),  # type: ignore[misc]
            lambda: pasted.log(one)[-3000:],
            PATIENCE_S,
        )
    assert "dev tunl0" in run("ip", "-n", "n1", "route", "get", other.workload4)
    assert "dev eth0" in run("ip", "-n", "n1", "route", "get", other.workload6)
    assert tries("n1", "ping", "-c", "1", "-W", "2", other.workload4)
    assert tries("n1", "ping", "-c", "1", "-W", "2", other.workload6)
