"""Logging: one structured event per fact, JSON where nobody watches, readable text on a terminal.

Under systemd each line begins with its priority, ``<3>`` for an error (sd-daemon(3)), which journald takes away again.
A running agent gives a limit (``felixpy.observe.log_limit``). Must never end the agent: where the reader of standard
error is gone, lines are counted and lost.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog

from felixpy.observe.log_limit import LogLimit

SEVERITIES = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
    "CRITICAL": logging.CRITICAL,
}


PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)


class _StandardError:
    """Writes lines; one that is not taken is counted. No line is worth the agent."""

    def __init__(self, limit: LogLimit | None) -> None:
        self._file = sys.stderr
        self._limit = limit

    def msg(self, text: str) -> None:
        try:
            print(text, file=self._file, flush=True)
        except (OSError, ValueError):  # ValueError: it was closed
            if self._limit is not None:
                self._limit.errors += 1

    debug = info = warning = error = exception = critical = msg


def configure_logging(severity: str, limit: LogLimit | None = None) -> None:
    """Send events of at least this severity (LogSeverityScreen) to standard error; ``NONE`` or empty: none."""
    least = SEVERITIES.get(severity.upper())
    if limit is not None:
        limit.is_on = least is None or least > logging.DEBUG
    terminal = sys.stderr.isatty()
    journal = [] if terminal or not _is_journal() else [_prioritise]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            *([_drop] if least is None else []),
            *([limit] if limit is not None else []),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
            *journal,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL if least is None else least),
        logger_factory=lambda *_: _StandardError(limit),
        cache_logger_on_first_use=False,
    )


def _drop(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent


def _is_journal() -> bool:
    """Whether standard error leads to journald: ``JOURNAL_STREAM`` names device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _prioritise(logger: object, method: str, text: structlog.typing.EventDict) -> str:
    return f"<{PRIORITIES.get(method, 5)}>{text}"
