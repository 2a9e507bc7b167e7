"""Logs: one JSON object a line where nobody watches, and nothing below the severity asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from felixpy.config import SettingsSource, resolve
from felixpy.observe.log import SEVERITIES, configure_logging
from felixpy.observe.samples import RecentFailures
from felixpy.standing import Standing


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def lines(capsys: pytest.CaptureFixture[str], severity: str) -> list[dict[str, str]]:
    configure_logging(severity)
    log = structlog.get_logger("test")
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)("happened", object="pod")
    captured = capsys.readouterr()
    assert captured.out == ""  # standard output is for what a command prints
    return [json.loads(line) for line in captured.err.splitlines()]


@pytest.mark.parametrize(
    ("severity", "expected"),
    [
        ("TRACE", ["debug", "info", "warning", "error", "critical"]),
        ("DEBUG", ["debug", "info", "warning", "error", "critical"]),
        ("INFO", ["info", "warning", "error", "critical"]),
        ("warning", ["warning", "error", "critical"]),
        ("ERROR", ["error", "critical"]),
        ("FATAL", ["critical"]),
        ("NONE", []),
        ("", []),
    ],
)
def test_only_what_is_severe_enough_is_said(
    capsys: pytest.CaptureFixture[str], severity: str, expected: list[str]
) -> None:
    found = lines(capsys, severity)
    assert [line["level"] for line in found] == expected
    assert all(line["event"] == "happened" and line["object"] == "pod" for line in found)
    assert all(line["timestamp"].endswith("Z") for line in found)


def test_an_error_keeps_its_traceback_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    try:
        raise ValueError("why")
    except ValueError:
        structlog.get_logger("test").error("failed", exc_info=True)
    (line,) = [json.loads(text) for text in capsys.readouterr().err.splitlines()]
    assert "ValueError: why" in line["exception"]


def test_every_severity_that_can_be_set_is_known() -> None:
    for name in ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "FATAL"):
        settings, problems = resolve([SettingsSource("test", {"LogSeverityScreen": name.lower()})])
        assert not problems
        assert settings.log_severity_screen in SEVERITIES


def test_under_systemd_a_line_begins_with_its_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        configure_logging("DEBUG")
        log = structlog.get_logger("test")
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(log, level)("happened")
        monkeypatch.setenv("JOURNAL_STREAM", "1:1")  # a parent's, not ours
        configure_logging("INFO")
        structlog.get_logger("test").info("elsewhere")
        stream.seek(0)
        found = stream.read().splitlines()
    assert [line[:3] for line in found[:-1]] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert [json.loads(line[3:])["event"] for line in found[:-1]] == ["happened"] * 5
    assert json.loads(found[-1])["event"] == "elsewhere"


def test_a_failure_that_stands_is_said_when_it_begins_changes_and_ends() -> None:
    with capture_logs() as logs:
        recent = RecentFailures()
        standing = Standing(recent.note, recent.over)
        for reason in ("no memory", "no memory", "no memory", "no rights", "no rights"):
            standing.fails("the kernel cannot be read", reason)
        assert [bool(failure.over_ts) for failure in recent.all()] == [True, False]
        standing.works("the kernel cannot be read")
        standing.works("the kernel cannot be read")
    assert [(line["log_level"], line.get("reason", line.get("was"))) for line in logs] == [
        ("error", "no memory"),
        ("error", "no rights"),
        ("info", "no rights"),
    ]
    assert logs[-1]["times"] == 5
    assert [failure.reason for failure in recent.all()] == ["no memory", "no rights"]
    assert all(failure.over_ts for failure in recent.all())
