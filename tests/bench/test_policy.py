"""The benchmark of policy measures what it says, in small, and its rows follow the figures."""

from __future__ import annotations

import asyncio

import pytest

from bench import policy, policy_budget, policy_packets
from bench.budget import MET, MISSED, UNMEASURED
from bench.policy_objects import scenario
from bench.policy_rules import CHAIN_PER_ENDPOINT, SET_PER_POLICY
from bench.results import FELIXPY, Cell, Results

CELL = Cell("nftables", "dual", policy_packets.SIZE)


def row(results: Results, what: str, where: str) -> tuple[str, str]:
    (found,) = [one for one in policy_budget.rows(results) if one.what == what and one.where == where]
    return found.measured, found.verdict


def test_rows_are_ratios_of_one_run() -> None:
    results = Results({})
    for count, spent in ((0, 2.0), (10, 3.0), (1_000, 3.6)):
        results.add(CELL, scenario(count), "new connection", spent, unit="µs")
    results.add(CELL, scenario(10), "new connection", 6.0, subject=CHAIN_PER_ENDPOINT, unit="µs")
    small = Cell("nftables", "dual", 10)
    results.add(small, scenario(10), "one workload", 1.0, 1.1, 1.2)
    results.add(small, scenario(10), "one workload", 1.0, subject=policy_budget.WITHOUT)
    results.add(small, scenario(10), "label of a peer", 1.6)
    new = "new connections a second"
    assert row(results, new, "nftables N=1,000, P=10 against 0") == ("0.67 × (333 and 500 thousand)", MET)
    assert row(results, new, "nftables N=1,000, P=1,000 against 10") == ("0.83 × (278 and 333 thousand)", MISSED)
    few = "nftables N=10, P=10"
    assert row(results, "one workload, without policies", few) == ("1.10 × (1.1 and 1 ms)", MET)
    assert row(results, "label of a peer, one workload without policies", few)[1] == MISSED
    assert row(results, "a policy for all", few)[1] == UNMEASURED
    (other,) = policy_budget.others(results)
    assert (other.what, other.measured) == ("new connection: chain per endpoint", "6 µs, 2.00 × felixpy's 3")


def test_the_same_rows_are_listed_whatever_was_measured() -> None:
    rows = policy_budget.rows(Results({}))
    assert len(rows) == len({(one.what, one.where) for one in rows})
    assert {one.verdict for one in rows} == {UNMEASURED}


@pytest.mark.parametrize("backend", ["nftables", "legacy", "nft"])
def test_it_measures_in_small(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each packet that should arrive does, and no other one: else it would be another way that is measured."""
    monkeypatch.setattr(policy_packets, "SIZE", 12)
    monkeypatch.setattr(policy_packets, "COUNTS", (0, 10))
    for module in (policy, policy_packets):
        monkeypatch.setattr(module, "QUICK_TURNS", 1)
    results, said = Results({}), list[str]()
    asyncio.run(policy.measure(results, said.append, [backend], [3], [10], quick=True))
    small, packets = Cell(backend, "dual", 3), Cell(backend, "dual", 12)
    for metric in ("cold start", "one workload", "label of a peer", "a policy for all"):
        assert results.samples(small, scenario(10), metric)
    subjects = [FELIXPY, *((CHAIN_PER_ENDPOINT, SET_PER_POLICY) if backend == "nftables" else ())]
    for metric in policy_packets.METRICS:
        assert all(len(results.samples(packets, scenario(10), metric, one)) == 1 for one in subjects)
    assert len(said) == 3
