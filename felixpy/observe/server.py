"""HTTP: ``/liveness`` and ``/readiness`` for the kubelet, ``/metrics`` for Prometheus. Off unless switched on.

The stream may switch them on and off: a port that is taken then is an error in the log, at the start it is the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog

from felixpy.config import Settings

log = structlog.get_logger("felixpy")

Probe = Callable[[], tuple[bool, str]]
"""Answers whether all is well, and says why not."""


class ListenError(OSError):
    """An address cannot be had: one sentence with address, reason and setting."""


Details = Callable[[], Mapping[str, Any]]
"""What a probe shows beside its answer: ``components`` by name, each with ``ok`` and ``detail``."""


async def serve_latest(
    settings: Settings,
    changes: asyncio.Queue[Settings],
    live: Probe,
    ready: Probe,
    metrics: Callable[[], bytes],
    details: Details = dict,
) -> None:
    """Serve for ever what the latest settings switch on.

    Raises:
        ListenError: an address of the first settings cannot be had.
    """
    is_first = True
    while True:
        try:
            async with _serving(settings, live, ready, metrics, details):
                settings, is_first = await _change(settings, changes), False
        except ListenError as error:
            if is_first:
                raise
            log.error("not served", reason=str(error))
            settings = await _change(settings, changes)


async def _change(settings: Settings, changes: asyncio.Queue[Settings]) -> Settings:
    """The next settings by which something else is served."""
    while True:
        newer = await changes.get()
        if _served(newer) != _served(settings):
            return newer


def _served(settings: Settings) -> tuple[object, ...]:
    health = (settings.health_host, settings.health_port) if settings.health_enabled else ()
    metrics = (settings.prometheus_metrics_host, settings.prometheus_metrics_port)
    return health, metrics if settings.prometheus_metrics_enabled else ()


@asynccontextmanager
async def _serving(
    settings: Settings, live: Probe, ready: Probe, metrics: Callable[[], bytes], details: Details
) -> AsyncIterator[None]:
    if not any(_served(settings)):
        yield
        return
    from felixpy.observe.http import serve  # aiohttp costs 0.1 s and 8 MiB, which most nodes need not pay

    async with serve(settings, live, ready, metrics, details):
        yield
