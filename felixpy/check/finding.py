"""A line of ``felixpy check``."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """How grave: ``fail`` keeps felixpy from working, ``warn`` may, ``info`` is good to know."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """What was found, why it matters and what to do about it; the last one is empty where nothing is to do."""

    id: str
    level: Level
    found: str
    why: str
    fix: str = ""


def exit_code(findings: list[Finding]) -> int:
    """0 fine, 1 warnings, 2 failures."""
    levels = {finding.level for finding in findings}
    return 2 if Level.FAIL in levels else 1 if Level.WARN in levels else 0
