"""How tests are spread over workers, in which order, for how long at most, and what every run ends with: what was
skipped, and why.

A behaviour test names its combination of back-end and mode in its id, ``[nftables-dual]``; a combination stays in one
worker, because its lab is shared; so do the tests of a ``crowd`` of interfaces, those on a booted ``machine``, and of
the underlay those of a module that have one lab, with one back-end.
(``--dist loadgroup`` of xdist 3.8 does not group with pytest 9.2.) Combinations wait for packets most of the time,
others compute: every second worker begins with the others, so that both go on side by side to the end.

``--shuffle SEED`` runs modules, and the tests of each, in an order of their own; ``--shuffle new`` takes a new seed and
says which. The time-out of a test counts what the machine gave it, not the clock: beside busy
processes it lasts longer.

``FELIXPY_TEST_COMPLETE=1`` (set by ``make test``) turns each skip into a failure of the whole run: the set-up has
installed everything that the tests ask for.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections import Counter
from typing import Any

import hypothesis
import pytest
import pytest_timeout
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from felixpy.demo.patience import Patience
from tests.netns import enter_new_network, enter_private_namespaces

COMPLETE = "FELIXPY_TEST_COMPLETE"


COMBINATION = re.compile(r"\[((?:nftables|legacy|nft)-(?:dual|v4|v6)|crowd|machine)\b")


SHARED_LAB = re.compile(
    r"underlay/test_(wireguard|wireguard_hosts|tunnel_rules|crossed_families)\.py(?:.*\[(nftables|legacy|nft)\b)?"
)


class CombinationScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Tests of one combination to one worker; every other test by itself."""

    def _split_scope(self, nodeid: str) -> str:
        if match := COMBINATION.search(nodeid):
            return match[1]
        lab = SHARED_LAB.search(nodeid)
        return lab[0].partition("::")[0] + (lab[2] or "") if lab else nodeid

    def _assign_work_unit(self, node: Any) -> None:
        """The queue begins with the largest combination; half of the workers take from its end."""
        if self.nodes.index(node) % 2:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> CombinationScheduling:
    return CombinationScheduling(config, log)


# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("felixpy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("felixpy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", metavar="SEED", help="another order of modules and tests; 'new' draws a seed")


def pytest_configure(config: pytest.Config) -> None:
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # started in the background: no program of a test would end by it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if told := getattr(config, "workerinput", {}).get("shuffle"):
        config.option.shuffle = told
    elif config.option.shuffle == "new":
        config.option.shuffle = str(random.randrange(10**6))


def pytest_configure_node(node: Any) -> None:
    """A worker gets the arguments of the command line, and the seed that was drawn."""
    node.workerinput["shuffle"] = node.config.option.shuffle


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"order of the tests: --shuffle {config.option.shuffle}"] if config.option.shuffle else []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Before pytest itself brings together again what shares a fixture of the session, such as a lab."""
    if config.option.shuffle:
        rng = random.Random(config.option.shuffle)
        modules = sorted({item.location[0] for item in items})
        places = dict(zip(rng.sample(modules, len(modules)), range(len(modules)), strict=True))
        rng.shuffle(items)
        items.sort(key=lambda item: places[item.location[0]])


LOOK_SECONDS = 5.0


def pytest_timeout_set_timer(item: pytest.Item, settings: pytest_timeout.Settings) -> bool | None:
    """As pytest-timeout's own timer by signal, with patience."""
    if settings.method != "signal":
        return None
    patience = Patience(settings.timeout, 2 * LOOK_SECONDS)

    def look(number: int, frame: object) -> None:
        __tracebackhide__ = True
        if patience.over():
            signal.setitimer(signal.ITIMER_REAL, 0)
            pytest_timeout.timeout_sigalrm(item, settings)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, look)
    step = min(LOOK_SECONDS, settings.timeout)
    signal.setitimer(signal.ITIMER_REAL, step, step)
    return True


@pytest.fixture(scope="session", autouse=True)
def private_namespaces() -> None:
    """Network and mounts of this test process's own: for every test, so that one that writes by mistake what it should
    only calculate cannot reach the machine's. Who is not root can write nothing.
    """
    if os.geteuid() == 0:
        enter_private_namespaces()


@pytest.fixture
def network(private_namespaces: None) -> None:
    """An empty network for one test, with the loopback up."""
    enter_new_network()


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longrepr)


def _skipped(terminal: pytest.TerminalReporter) -> list[pytest.TestReport]:
    return [report for report in terminal.stats.get("skipped", []) if not hasattr(report, "wasxfail")]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = _skipped(terminalreporter)
    if seed := terminalreporter.config.option.shuffle:  # -q leaves the header out
        terminalreporter.write_line(f"this order again: --shuffle {seed}")
    terminalreporter.section("what did not run, and why")
    if not skipped:
        terminalreporter.write_line("nothing was skipped")
    for report in skipped:
        terminalreporter.write_line(f"{report.nodeid}: {_reason(report)}")
    for reason, count in Counter(map(_reason, skipped)).most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")
    if skipped and os.environ.get(COMPLETE) == "1":
        terminalreporter.write_line(f"{COMPLETE}=1: a skip fails the run; install what is named above", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    complete = os.environ.get(COMPLETE) == "1" and not hasattr(session.config, "workerinput")
    if complete and terminal is not None and session.exitstatus == pytest.ExitCode.OK and _skipped(terminal):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
