"""What the benchmark shows while it runs and at its end: a line of progress and a table; plain text without a TTY."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table

from bench import nodes_budget, policy_budget, turns
from bench.results import FELIXPY, Cell, Results
from bench.statistics import ENOUGH_FOR_P99

_ROWS = (
    ("add one", "visible"),
    ("add one after another", "visible"),
    *((turns.SCENARIO, metric) for metric in turns.METRICS),
    ("floor", "visible"),
    ("delete one", "visible"),
    ("change address", "visible"),
    ("burst of 100", "last visible after the last publish"),
    ("churn 50/s", "visible"),
    ("natOutgoing toggled", "visible"),
    ("remote block moved", "visible"),
    ("cold start, empty kernel", "in sync"),
    ("cold start, correct kernel", "in sync"),
    ("resync", "duration"),
    ("drift", "route is back"),
    ("drift", "element is back"),
    ("drift", "element is back, deleted by a command"),
    ("drift", "rule is back"),
    ("drift", "rule is back, deleted by a command"),
    ("drift", "rule of a chain with xtables matches is back"),
    ("drift", "rule of a chain with xtables matches is back, deleted by a command"),
    ("first packet", "tcp IPv4"),
    ("first packet", "udp IPv4"),
    ("first packet", "tcp IPv6"),
    ("first packet", "udp IPv6"),
)


class Progress:
    """One line that changes on a terminal; one line per step elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._begin = time.monotonic()
        # A spinner that turns often would take the processor that is measured.
        self._status = console.status("", refresh_per_second=1) if console.is_terminal else None
        if self._status:
            self._status.start()

    def step(self, number: int, cell: Cell, what: str) -> None:
        self.say(f"{number}/{self._total}  {cell}: {what}")

    def say(self, what: str) -> None:
        text = f"{time.monotonic() - self._begin:5.0f} s  {what}"
        if self._status:
            self._status.update(text)
        else:
            self._console.print(text)

    def close(self) -> None:
        if self._status:
            self._status.stop()


def show_nodes(console: Console, results: Results) -> None:
    """What other nodes cost: the budget of it, and beside it what was measured."""
    for row in (*nodes_budget.rows(results), *nodes_budget.ratios(results)):
        console.print("   ".join(row), markup=False)


def show_policy(console: Console, results: Results) -> None:
    """What policies cost, and what other ways to enforce them do."""
    for row in (*policy_budget.rows(results), *policy_budget.others(results)):
        console.print("   ".join(row), markup=False)


def show(console: Console, results: Results, cell: Cell) -> None:
    """The table of one cell: medians and more, and each comparator's ratio to felixpy."""
    table = Table(title=str(cell), title_justify="left", box=None, pad_edge=False)
    table.add_column("milliseconds", no_wrap=True)
    for head in ("min", "median", "p90", "p99", "max", "n"):
        table.add_column(head, justify="right")
    table.add_column("")
    for scenario, metric in _ROWS:
        for subject in (FELIXPY, *(one for one in results.subjects if one != FELIXPY)):
            found = results.get(cell, scenario, metric, subject)
            if found is None:
                continue
            ours = results.get(cell, scenario, metric)
            name = f"{scenario}: {metric}" if subject == FELIXPY else f"  {subject}"
            note = "noisy" if found.noisy else ""
            if subject != FELIXPY and ours:
                note = f"{found.median / ours.median:.1f} × felixpy {note}"
            figures = [f"{value:.2f}" for value in found[:5]]
            if found.samples < ENOUGH_FOR_P99:
                figures[3] = "–"
            table.add_row(name, *figures, str(found.samples), note)
    console.print(table)
    console.print()
