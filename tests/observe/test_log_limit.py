"""The log stays readable whatever happens: bursts are cut, and what is left out is counted and told."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from felixpy.model.resources import Kind, ResourceKey
from felixpy.observe.log import configure_logging
from felixpy.observe.log_limit import BURST, LEFT_OUT, LINES_PER_SECOND, MAX_EVENTS, LogLimit
from felixpy.observe.metrics import Metrics
from felixpy.observe.problems import Problems
from tests.kernel import Clock


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limit(clock: Clock) -> LogLimit:
    made = LogLimit(clock)
    configure_logging("INFO", made)
    return made


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_snapshot_of_bad_objects_gives_a_readable_log(limit: LogLimit, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics("n1")
    problems = Problems(metrics)
    for number in range(5000):
        problems.set(ResourceKey(Kind.WORKLOAD_ENDPOINT, f"w{number}", "default"), "spec.node is missing")
    limit.tell()
    limit.tell()
    *shown, last = lines(capsys)
    assert len(shown) == BURST
    assert (last["event"], last["of"], last["count"], last["level"]) == (LEFT_OUT, "problem", 5000 - BURST, "warning")
    assert limit.dropped == 5000 - BURST
    assert metrics.registry.get_sample_value("felixpy_problems", {"kind": "WorkloadEndpoint"}) == 5000


def test_each_event_and_level_has_its_own_allowance(limit: LogLimit, capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger("test")
    for _ in range(2 * BURST):
        log.info("busy")
        log.warning("busy")
        log.error("broken")
        log.critical("the end")
    limit.tell()
    said = lines(capsys)
    counted = Counter((line["event"], line["level"]) for line in said if line["event"] != LEFT_OUT)
    assert counted == {
        ("busy", "info"): BURST,
        ("busy", "warning"): BURST,
        ("broken", "error"): BURST,
        ("the end", "critical"): 2 * BURST,
    }
    told = {(line["of"], line["level"], line["count"]) for line in said if line["event"] == LEFT_OUT}
    assert told == {("busy", "info", BURST), ("busy", "warning", BURST), ("broken", "error", BURST)}


def test_lines_come_back_with_time(limit: LogLimit, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger("test")
    shown = []
    for pause in (0.0, 3.0, 3 * BURST):
        clock.now += pause
        for _ in range(2 * BURST):
            log.info("busy")
        shown.append(len(lines(capsys)))
    assert shown == [BURST, 3 * LINES_PER_SECOND, BURST]
    limit.tell()
    assert sum(shown) + int(str(lines(capsys)[0]["count"])) == 6 * BURST, "every line is shown or counted"


def test_errors_are_counted_at_a_level_that_is_seen(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    limit = LogLimit(clock)
    configure_logging("ERROR", limit)
    log = structlog.get_logger("test")
    for _ in range(BURST + 3):
        log.error("broken")
        log.info("not asked for")
        try:
            raise ValueError("why")
        except ValueError:
            log.exception("broken too")
    limit.tell()
    told = {line["of"]: line["count"] for line in lines(capsys) if line["event"] == LEFT_OUT}
    assert told == {"broken": 3, "broken too": 3}


def test_debug_leaves_nothing_out_and_a_change_back_does_again(
    limit: LogLimit, capsys: pytest.CaptureFixture[str]
) -> None:
    for severity, expected in (("DEBUG", 2 * BURST), ("INFO", BURST)):
        configure_logging(severity, limit)
        for _ in range(2 * BURST):
            structlog.get_logger("test").info("busy")
        assert len(lines(capsys)) == expected


def test_memory_does_not_grow_with_names(limit: LogLimit, capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger("test")
    for number in range(MAX_EVENTS + 3 * BURST):
        log.info(f"event {number}")
    assert len(limit._buckets) == MAX_EVENTS + 1
    limit.tell()
    *shown, last = lines(capsys)
    assert len(shown) == MAX_EVENTS + BURST
    assert (last["of"], last["count"]) == ("others", 2 * BURST)


def test_a_reader_that_is_gone_does_not_end_the_agent(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    limit = LogLimit(clock)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        configure_logging("INFO", limit)
        structlog.get_logger("test").error("nobody reads this")
        structlog.get_logger("test").error("nor this")
        with Path(os.devnull).open("w") as sink:
            os.dup2(sink.fileno(), writer)  # so that the stream can be closed
    assert limit.errors == 2
