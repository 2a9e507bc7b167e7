"""What policy costs the agent, the kernel and packets: rows of the budget as ratios, each pair measured in turn.

    python -m bench.policy [--backends nftables,legacy,nft] [--sizes 10,1000,10000] [--policies 10,1000] [--quick]

A child per subject holds an agent in a network of its own and is told of objects without a broker; the parent lets them
take turns (``bench/policy_subject.py``). Of changes processor time is measured. Workloads have no interfaces there, so
that routes and neighbours are left out on both sides, which makes the ratios stricter than the whole. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence

from bench import machine, policy_budget, policy_packets
from bench.budget import UNMEASURED
from bench.policy_budget import WITHOUT
from bench.policy_objects import PEERS, calico, endpoint, policies, scenario
from bench.policy_subject import MODES, children
from bench.results import FELIXPY, Cell, Results

SIZES, QUICK_SIZES = (10, 5_000), (10,)
COUNTS = (10, 1_000)
TURNS, QUICK_TURNS = 40, 10
FOR_ALL_TIMES = 5

Say = Callable[[str], None]


def usual(*, quick: bool) -> Sequence[str]:
    """Those of a quick, or of a whole run."""
    return ("nftables",) if quick else tuple(MODES)


async def measure(
    results: Results,
    say: Say,
    backends: Sequence[str],
    sizes: Sequence[int] = SIZES,
    counts: Sequence[int] = COUNTS,
    *,
    quick: bool = False,
) -> None:
    """Changes with the first back-end, sizes and numbers of policies, and packets with all of the back-ends."""
    for size in sizes:
        for count in counts:
            say(f"policy {backends[0]} N={size:,}: {count:,} policies")
            await _changes(results, Cell(backends[0], "dual", size), count, QUICK_TURNS if quick else TURNS)
    await policy_packets.measure(results, say, backends, quick=quick)


async def _changes(results: Results, cell: Cell, count: int, turns: int) -> None:
    """One cell: the same node with policies and without."""
    crowd = [endpoint(number) for number in range(1, cell.size + 1)]
    peers = [endpoint(100_000 + number, "n2", f"peer{number % PEERS}") for number in range(PEERS)]
    wide = calico("GlobalNetworkPolicy", "wide", {"selector": "all()", "order": 0, "types": ["Ingress"],
                                                  "ingress": [{"action": "Allow"}]})  # fmt: skip
    one, name = endpoint(50_001), scenario(count)
    async with children({FELIXPY: (cell.backend, {}), WITHOUT: (cell.backend, {})}) as subjects:
        for subject, child in subjects.items():
            several = policies(count) if subject == FELIXPY else []
            results.add(cell, name, "cold start", await child.ask(start=[*several, *crowd, *peers]), subject=subject)
        for turn in range(turns):
            for subject, child in subjects.items():
                results.add(cell, name, "one workload", await child.ask(put=[one]), subject=subject)
                await child.ask(gone=[one])
            peer = endpoint(100_000 + turn, "n2", f"peer{(turn + 1) % PEERS}")
            results.add(cell, name, "label of a peer", await subjects[FELIXPY].ask(put=[peer]))
        for _ in range(FOR_ALL_TIMES):
            results.add(cell, name, "a policy for all", await subjects[FELIXPY].ask(put=[wide]))
            await subjects[FELIXPY].ask(gone=[wide])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.policy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", default="nftables", help="by commas; changes with the first one")
    parser.add_argument("--sizes", default="10,1000,10000", help="workloads of the node; nothing: packets alone")
    parser.add_argument("--policies", default="10,1000")
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    options = parser.parse_args()
    sizes, counts = ([int(one) for one in text.split(",") if one] for text in (options.sizes, options.policies))
    results = Results(machine.describe())
    asyncio.run(measure(results, print, options.backends.split(","), sizes, counts, quick=options.quick))
    for row in policy_budget.rows(results):
        if row.verdict != UNMEASURED:
            print("   ".join(row))
    for row in policy_budget.others(results):
        print("   ".join(row))


if __name__ == "__main__":
    main()
