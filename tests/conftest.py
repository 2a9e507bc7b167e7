"""How tests are spread over workers, and what every run ends with: what was skipped, and why.

A behaviour test names its combination of back-end and mode in its id, ``[nftables-dual]``; a combination stays in one
worker, because its lab is shared; so do the tests of a ``crowd`` of interfaces, and those on a booted ``machine``.
(``--dist loadgroup`` of xdist 3.8 does not group with pytest 9.2.)

``FELIXPY_TEST_COMPLETE=1`` (set by ``make test``) turns each skip into a failure of the whole run: the set-up has
installed everything that the tests ask for.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.netns import enter_new_network, enter_private_namespaces

COMPLETE = "FELIXPY_TEST_COMPLETE"


COMBINATION = re.compile(r"\[((?:nftables|legacy|nft)-(?:dual|v4|v6)|crowd|machine)\b")


class CombinationScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Tests of one combination to one worker; every other test by itself."""

    def _split_scope(self, nodeid: str) -> str:
        match = COMBINATION.search(nodeid)
        return match[1] if match else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> CombinationScheduling:
    return CombinationScheduling(config, log)


@pytest.fixture(scope="session")
def private_namespaces() -> None:
    """Network and mounts of this test process's own."""
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
