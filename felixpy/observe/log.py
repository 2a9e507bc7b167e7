"""Logging: one structured event per fact, JSON where nobody watches, readable text on a terminal.

Under systemd each line begins with its priority, ``<3>`` for an error (sd-daemon(3)), which journald takes away again.
A running agent gives a limit (``felixpy.observe.log_limit``). Must never end the agent: where the reader of standard
error is gone, lines are counted and lost.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from itertools import islice

import structlog

from felixpy.observe.log_limit import LogLimit
from felixpy.observe.log_writer import LogWriter

MAX_TEXT, MAX_ITEMS, MAX_EVENT = 2000, 50, 100
"""Characters of one value, members of one list, and characters of what a library says, in a line of the log."""

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

    def __init__(self, limit: LogLimit | None, writer: LogWriter | None) -> None:
        self._file = sys.stderr
        self._limit = limit
        self._writer = writer

    def msg(self, text: str) -> None:
        if self._writer is not None:
            self._writer.put(text)
            return
        try:
            print(text, file=self._file, flush=True)
        except (OSError, ValueError):  # ValueError: it was closed
            if self._limit is not None:
                self._limit.errors += 1

    debug = info = warning = error = exception = critical = msg


def configure_logging(severity: str, limit: LogLimit | None = None, *, in_thread: bool = False) -> None:
    """Send events of at least this severity (LogSeverityScreen) to standard error; ``NONE`` or empty: none.

    ``in_thread``: lines are written by a thread, so that a reader that stands still does not stop the caller.
    """
    least = SEVERITIES.get(severity.upper())
    if limit is not None:
        limit.is_on = least is None or least > logging.DEBUG
    writer = _writer(limit) if limit is not None and in_thread else None
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
            cut_values,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
            *journal,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL if least is None else least),
        logger_factory=lambda *_: _StandardError(limit, writer),
        cache_logger_on_first_use=False,
    )


class _Library(logging.Handler):
    """What asyncio and other libraries say, as lines of our own: one event per kind, cut, and limited like all.

    Without it the interpreter prints them, with tracebacks and without a limit.
    """

    def emit(self, record: logging.LogRecord) -> None:
        name, level = f"{record.name}: {str(record.msg)[:MAX_EVENT]}", logging.getLevelName(record.levelno).lower()
        facts = {"reason": record.getMessage()} if record.args else {}
        if record.exc_info and record.exc_info[1] is not None:
            facts["trace"] = "".join(traceback.format_exception(*record.exc_info))[-MAX_TEXT:]
        getattr(structlog.get_logger("felixpy"), level if level in PRIORITIES else "warning")(name, **facts)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """A line that cannot be made is no reason to print a traceback."""


def take_libraries() -> None:
    """Let warnings and errors of libraries go the way of our own events."""
    root = logging.getLogger()
    if not any(isinstance(one, _Library) for one in root.handlers):
        root.addHandler(_Library(logging.WARNING))


_writers: dict[int, LogWriter] = {}
"""By file descriptor: another level does not start another thread."""


def _writer(limit: LogLimit) -> LogWriter | None:
    def lost(count: int) -> None:
        limit.errors += count

    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):
        return None
    if descriptor not in _writers:
        _writers[descriptor] = LogWriter(descriptor, lost)
        atexit.register(_writers[descriptor].flush)
    return _writers[descriptor]


def cut_values(logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Cut what is long: a list of ten thousand addresses is one value of a setting."""
    for key, value in event.items():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            event[key] = f"{value[:MAX_TEXT]}… ({len(value)} characters)"
        elif isinstance(value, list | tuple | set | frozenset) and len(value) > MAX_ITEMS:
            event[key] = [*islice(value, MAX_ITEMS), f"… and {len(value) - MAX_ITEMS} more"]
    return event


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
