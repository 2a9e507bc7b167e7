"""Logging: one structured event per fact, JSON where nobody watches, readable text on a terminal.

Under systemd each line begins with its priority, ``<3>`` for an error (sd-daemon(3)), which journald takes away again.
"""

from __future__ import annotations

import logging
import os
import sys

import structlog

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


def configure_logging(severity: str) -> None:
    """Send events of at least this severity (LogSeverityScreen) to standard error; ``NONE`` or empty: none."""
    least = SEVERITIES.get(severity.upper())
    terminal = sys.stderr.isatty()
    journal = [] if terminal or not _is_journal() else [_prioritise]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            *([_drop] if least is None else []),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
            *journal,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL if least is None else least),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
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
