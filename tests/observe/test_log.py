"""Logs: one JSON object a line where nobody watches, and nothing below the severity asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from felixpy.config import SettingsSource, resolve
from felixpy.observe.log import SEVERITIES, configure_logging


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
