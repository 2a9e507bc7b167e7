"""HTTP: ``/liveness`` and ``/readiness`` for the kubelet, ``/metrics`` for Prometheus. Off unless switched on.

A port that is taken, at the start or when the stream switches one on, is an error in the log and in the status, and is
tried again; the other one is served. No workload waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from msgspec.structs import replace

from felixpy.config import Settings
from felixpy.observe.probes import Details, ListenError, Probe
from felixpy.standing import Standing

RETRY_SECONDS = 10.0
"""Between two tries to have a port that was taken."""


async def serve_latest(
    settings: Settings,
    changes: asyncio.Queue[Settings],
    live: Probe,
    ready: Probe,
    metrics: Callable[[], Awaitable[bytes]],
    details: Details = dict,
    refused: dict[str, str] | None = None,
) -> None:
    """Serve for ever what the latest settings switch on; ``refused`` holds what cannot be served now, and why."""
    refused, standing = {} if refused is None else refused, Standing()
    while True:
        due = _parts(settings)
        for what in refused.keys() - due.keys():
            del refused[what]
            standing.works(what)
        async with AsyncExitStack() as stack:
            while True:
                for what, part in list(due.items()):
                    try:
                        await stack.enter_async_context(_serving(part, live, ready, metrics, details))
                    except ListenError as error:
                        refused[what] = str(error)
                        standing.fails(what, str(error))
                    else:
                        del due[what]
                        refused.pop(what, None)
                        standing.works(what)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_SECONDS if due else None):
                        settings = await _change(settings, changes)
                        break


def _parts(settings: Settings) -> dict[str, Settings]:
    """Settings that switch one thing on each, by what it is called if it does not work."""
    found = {}
    if settings.health_enabled:
        found["health is not served"] = replace(settings, prometheus_metrics_enabled=False)
    if settings.prometheus_metrics_enabled:
        found["metrics are not served"] = replace(settings, health_enabled=False)
    return found


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
    settings: Settings, live: Probe, ready: Probe, metrics: Callable[[], Awaitable[bytes]], details: Details
) -> AsyncIterator[None]:
    from felixpy.observe.http import serve  # aiohttp costs 0.1 s and 8 MiB, which most nodes need not pay

    async with serve(settings, live, ready, metrics, details):
        yield
