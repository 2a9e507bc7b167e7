"""The report: Markdown written from the samples of one run, the budget first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import budget, nodes_budget, policy_budget, turns
from bench.budget import number
from bench.marks import STAGES
from bench.results import EXTERNAL, FELIXPY, Results
from bench.statistics import ENOUGH_FOR_P99, Summary

HEAD = ("min", "median", "p90", "p99", "max", "n")

METHOD = """\
Each change is one retained MQTT message. Its time begins when its bytes go to the publisher's socket and ends when a
second observer, a process with notification sockets of its own in the node's namespace, has seen everything that the
change must bring: routes, permanent neighbours and set elements of both families. IP set members have no
notification; the observer asks the kernel for them after each notification and every millisecond. The stages
between come from clocks wrapped around the agent's functions from outside. All clocks are CLOCK_MONOTONIC of one
machine; publisher, Mosquitto, agent and observer share its processors.

Workloads are real interfaces in the node's namespace. Comparators run on a second node of the same network in turn
with the agent's changes. They get their change by a pipe, not by a broker, and calculate nothing, so the ratios
favour them. Their routes and neighbours go by one `ip -batch`, their rules by one restore per family or one `nft` for
both; their crowd has chains and routes, but its routes share one interface.

Changes of one workload are 60 ms apart, so that each meets an idle agent and kernel, but those *one after another*,
each of which is published as soon as the one before is visible. *In turn* is a change on this node and one on a node
with ten workloads: cells of different sizes are measured minutes apart, in which the machine becomes another. What an
addition meets shortly after a deletion shows in the churn.

The first packet is the first answer to a workload that tries TCP and UDP once a millisecond; its gateway is a
permanent neighbour, so that no retry of ARP is in the figure. Forwarding rates are those of a Python client and
server, which is why only their ratio to the same path without rules and without connection tracking says anything.\
"""


def write(results: Results, path: Path, plots: Sequence[str], command: str) -> None:
    """Write the report; ``plots`` are names in the folder beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(results, plots, command))


def render(results: Results, plots: Sequence[str], command: str) -> str:
    """The whole page."""
    parts = [
        "# Performance",
        "How long the network takes to follow an update, measured by `bench/`. This page is written by the benchmark; "
        f"to measure again:\n\n```\n{command}\n```",
        _in_short(results),
        *(f"![{name.replace('-', ' ')}](performance/{name}.svg)" for name in plots),
        "## The machine and this run",
        _machine(results),
        _remarks(results),
        "## The budget",
        _budget(results),
        _floor(results),
        "## One workload",
        _changes(results),
        "### Against other techniques",
        "One workload added or deleted, median; `ratio` is how many times longer than felixpy it takes. `libnftables` "
        "writes no routes and `pyroute2` no rules.",
        _comparators(results),
        "### Stages",
        "One workload added: median since the publish, ms. `on the wire`: the publisher has written it to its socket. "
        "The agent's own share is the processor time of its thread from received to acknowledged, without that inside "
        "netlink calls and /proc/sys.",
        _stages(results),
        "One after another:",
        _stages(results, "add one after another"),
        "## Many workloads",
        _table(results, _MANY),
        "Stages of an addition during churn:",
        _stages(results, "churn 50/s"),
        "## Start, resync, drift",
        _table(results, _WHOLE),
        "## Other nodes",
        _other_nodes(results),
        "## Policy",
        _policy(results),
        "## Packets",
        _table(results, _PACKETS),
        "Forwarding between two workloads, per second, against no rules:",
        _forwarding(results),
        "## Costs",
        _costs(results),
        "## How it is measured",
        METHOD,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_BESIDE = "pyroute2"
_SHORT = (
    ("one workload added, one after another", "add one after another", "visible"),
    ("one workload added, after a rest of 60 ms", "add one", "visible"),
    ("the last of 100 workloads added at once", "burst of 100", "last visible after the last publish"),
    ("start on an empty kernel until all is programmed", "cold start, empty kernel", "in sync"),
    ("start on a kernel that is right already", "cold start, correct kernel", "in sync"),
)


def _in_short(results: Results) -> str:
    """What a reader wants to know first: medians in dual stack by back-end, for the smallest and the largest node."""
    cells = [cell for cell in results.cells if cell.mode == "dual"]
    if not cells:
        return ""
    ends = [cell for cell in cells if cell.size in (min(one.size for one in cells), max(one.size for one in cells))]
    rows = []
    for what, scenario, metric in _SHORT:
        found = [results.get(cell, scenario, metric) for cell in ends]
        if any(found):
            rows.append([what, *(f"{number(one.median)} ms" if one else "" for one in found)])
    text = _markdown(("median, dual stack", *map(str, ends)), rows)
    measured = [cell for cell in cells if results.get(cell, "add one", "visible", _BESIDE)]
    for cell in sorted(measured, key=lambda one: one.size)[-1:]:
        ours, theirs = (results.get(cell, "add one", "visible", one) for one in (FELIXPY, _BESIDE))
        if ours and theirs:
            ratio = f"{theirs.median / ours.median:.1f} times as long with `{_BESIDE}` ({cell})"
            text += f"\n\nOne more workload takes {ratio}: batched messages, and no process, as here."
    return text + (
        "\n\nThe real Felix takes 16 to 278 times as long for it: [a page of its own](beside-felix.md). What programs"
        " that are started for each change take is among [the budget](#the-budget) and the tables."
    )


def _machine(results: Results) -> str:
    m = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in m.get("versions", {}).items())
    load = " ".join(map(str, m.get("load_before", [])))
    return (
        f"{m.get('processors')} × {m.get('processor')}, {m.get('memory_mib'):,} MiB, Linux {m.get('kernel')} "
        f"({m.get('architecture')}), Python {m.get('python')}; {versions}. Load average before the run: {load}. "
        f"The run took {m.get('seconds', 0):.0f} s. Times are milliseconds unless another unit stands there.\n\n"
        f"To parse one workload takes {m.get('in_a_row_us', '?')} µs in a row, {m.get('after_spin_us', '?')} µs after "
        "60 ms in which the same process has run nothing but an empty loop, and "
        f"{m.get('after_sleep_us', '?')} µs after 60 ms of sleep, as long as lie between two changes here: what rests "
        "is fetched into the caches again. An RCU grace period of this kernel takes "
        f"{m.get('grace_period_ms') or '?'} ms; for one nf_tables makes a repair wait "
        "after another program's deletion (see [reliability](reliability.md#drift))."
    )


def _remarks(results: Results) -> str:
    if not results.remarks:
        return ""
    return "Of this run:\n\n" + "\n".join(f"- {remark}" for remark in results.remarks)


def _markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; empty without rows."""
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    if not lines:
        return "Not measured in this run."
    titles = list(head)
    return "\n".join(["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles), *lines])


def _floor(results: Results) -> str:
    """What the machine itself takes, beside which the first rows have to be seen."""
    for cell in results.cells:
        received, visible = (results.get(cell, "floor", stage) for stage in ("received", "visible"))
        if received and visible:
            return (
                "The machine's own share of one workload: a program without event loop and tables (`bench/floor.py`) "
                "that waits in the broker's socket with its messages ready receives the publish after "
                f"{budget.number(received.median)} ms, and what it writes is visible after "
                f"{budget.number(visible.median)} ms (median; {cell})."
            )
    return ""


def _budget(results: Results) -> str:
    return _markdown(("what", "where", "budget", "measured", "verdict"), budget.rows(results))


def _figures(found: Summary) -> list[str]:
    figures = [number(value) for value in found[:5]]
    if found.samples < ENOUGH_FOR_P99:
        figures[HEAD.index("p99")] = "–"
    return [*figures, f"{found.samples}{' noisy' if found.noisy else ''}"]


_CHANGES = (
    ("add one", "visible"),
    ("add one after another", "visible"),
    *((turns.SCENARIO, metric) for metric in turns.METRICS),
    ("delete one", "visible"),
    ("change address", "visible"),
    ("natOutgoing toggled", "visible"),
    ("remote block moved", "visible"),
)
_MANY = (
    ("burst of 100", "last visible after the last publish"),
    ("burst of 100", "last visible after the first publish"),
    ("burst of 100 deleted", "last visible after the last publish"),
    ("churn 50/s", "visible"),
    ("churn 50/s", "gone"),
)
_EXTERNAL = (
    ("snapshot", "last workload visible"),
    *(
        (scenario, metric)
        for scenario in ("add one", "add one after another", "delete one")
        for metric in ("visible", "settled")
    ),
    ("burst of 100", "last visible after the last publish"),
    ("burst of 100 deleted", "last visible after the last publish"),
)
_WHOLE = (
    ("cold start, empty kernel", "first message received"),
    ("cold start, empty kernel", "last workload visible"),
    ("cold start, empty kernel", "in sync"),
    ("cold start, correct kernel", "in sync"),
    ("resync", "duration"),
    ("resync", "longest hold"),
    ("update during a resync", "visible"),
    ("drift", "route is back"),
    ("drift", "element is back"),
    ("drift", "element is back, deleted by a command"),
    ("drift", "rule is back"),
    ("drift", "rule is back, deleted by a command"),
    ("drift", "rule of a chain with xtables matches is back"),
    ("drift", "rule of a chain with xtables matches is back, deleted by a command"),
)
_PACKETS = tuple(
    ("first packet", metric) for metric in ("routes visible", "tcp IPv4", "udp IPv4", "tcp IPv6", "udp IPv6")
)


def _table(results: Results, wanted: Sequence[tuple[str, str]], subject: str = FELIXPY) -> str:
    rows = []
    for scenario, metric in wanted:
        for cell in results.cells:
            if found := results.get(cell, scenario, metric, subject):
                rows.append([f"{scenario}: {metric}", str(cell), *_figures(found)])
    return _markdown(("what", "where", *HEAD), rows)


def _changes(results: Results) -> str:
    text = _table(results, _CHANGES)
    if EXTERNAL in results.subjects:
        text += (
            "\n\nThe agent given by `--external`; visible are its routes, settled is the last that the kernel told:\n\n"
        )
        text += _table(results, _EXTERNAL, EXTERNAL)
    return text


def _comparators(results: Results) -> str:
    rows = []
    for cell in results.cells:
        for scenario in ("add one", "delete one"):
            ours = results.get(cell, scenario, "visible")
            for subject in results.subjects:
                theirs = results.get(cell, scenario, "visible", subject)
                if subject != FELIXPY and ours and theirs:
                    started = results.get(cell, scenario, "processes", subject)
                    count = f"{theirs.samples}{' noisy' if theirs.noisy else ''}"
                    rows.append(
                        [
                            str(cell), scenario, subject, number(ours.median), number(theirs.median),
                            f"{theirs.median / ours.median:.1f} ×", count,
                            number(started.median) if started else "",
                        ]
                    )  # fmt: skip
    return _markdown(("where", "what", "technique", "felixpy", "technique's", "ratio", "n", "processes"), rows)


def _stages(results: Results, scenario: str = "add one") -> str:
    columns = ("on the wire", *STAGES, "visible", "agent's own share", "inside the kernel")
    rows = []
    for cell in results.cells:
        found = [results.get(cell, scenario, column) for column in columns]
        if any(found):
            rows.append([str(cell), *(number(one.median) if one else "" for one in found)])
    return _markdown(("where", *columns), rows)


def _other_nodes(results: Results) -> str:
    """What other nodes cost, with its own budget; sizes there are numbers of nodes."""
    text = (
        "A node comes with a block of each family, by the mode of its pools; one real node answers pings while the "
        "mode changes for all. Kernel: processor time inside netlink calls, for routing and sets; agent: the rest of "
        "the thread's, from the first message to the last acknowledgement.\n\n"
    )
    text += _markdown(("what", "where", "budget", "measured", "verdict"), nodes_budget.rows(results))
    if others := nodes_budget.ratios(results):
        text += "\n\nOthers, without an agent (`bench/two_devices.py`):\n\n"
        text += _markdown(("what", "where", "", "measured", ""), others)
    return text


def _policy(results: Results) -> str:
    """What policies cost, with their own budget, and other ways to enforce the same."""
    text = (
        "A node with so many policies beside one without, in turn. Changes: processor time of agent and kernel, "
        "without routes and neighbours, which cost both the same. Packets: from one workload to another, five policies "
        "of three rules for the receiver, the last of which allows it; of each turn the quickest batch, with the way "
        "through two veth pairs in it.\n\n"
    )
    text += _markdown(("what", "where", "budget", "measured", "verdict"), policy_budget.rows(results))
    if others := policy_budget.others(results):
        text += "\n\nOther ways to enforce the same (`bench/policy_rules.py`):\n\n"
        text += _markdown(("what", "where", "", "measured", ""), others)
    return text


def _forwarding(results: Results) -> str:
    rows = []
    for cell in results.cells:
        for metric in ("new connections IPv4", "new connections IPv6", "packets IPv4", "packets IPv6"):
            ours, bare = results.get(cell, "forwarding", metric), results.get(cell, "forwarding", metric, "none")
            if ours and bare:
                share = ours.median / bare.median if bare.median else 0.0
                rows.append(
                    [str(cell), metric, number(ours.median), number(bare.median), f"{share:.0%}", str(ours.samples)]
                )
    return _markdown(("where", "what", "through felixpy's rules", "no rules", "share", "n"), rows)


_COSTED = (
    "cold start, empty kernel", "cold start, correct kernel", "add one", "change address", "burst of 100", "churn 50/s",
    "natOutgoing toggled", "remote block moved", "resync", "idle",
)  # fmt: skip


def _costs(results: Results) -> str:
    """Processor and memory of a whole scenario; messages, bytes and processes of one change."""
    text = (
        "Processor seconds and peak memory (VmHWM) are the agent's over the whole scenario; messages, sends, bytes and "
        "processes are medians of one change (of the start, of the burst).\n\n"
    )
    rows = []
    for cell in results.cells:
        for scenario in _COSTED:
            found = [
                results.get(cell, scenario, metric)
                for metric in ("cpu", "elapsed", "peak memory", "messages", "sends", "bytes", "processes")
            ]
            if any(found):
                rows.append([str(cell), scenario, *(number(one.median) if one else "" for one in found)])
    head = ("where", "what", "cpu s", "of s", "peak MiB", "messages", "sends", "bytes", "processes")
    return text + _markdown(head, rows)


def command_of(quick: bool) -> str:
    """The command that reproduces a run."""
    return "BENCH=quick make bench" if quick else "make bench"
