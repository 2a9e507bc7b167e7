"""HTTP: ``/liveness`` and ``/readiness`` for the kubelet, ``/metrics`` for Prometheus. Off unless switched on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from felixpy.config import Settings

Probe = Callable[[], tuple[bool, str]]
"""Answers whether all is well, and says why not."""


@asynccontextmanager
async def serve(settings: Settings, live: Probe, ready: Probe, metrics: Callable[[], bytes]) -> AsyncIterator[None]:
    """Serve what the settings switch on, for the duration of the context.

    Raises:
        OSError: an address is taken; the message names it.
    """
    runners = []
    try:
        if settings.health_enabled:
            routes = [web.get("/liveness", _probe(live)), web.get("/readiness", _probe(ready))]
            runners.append(await _listen(routes, settings.health_host, settings.health_port))
        if settings.prometheus_metrics_enabled:
            routes = [web.get("/metrics", _text(metrics))]
            runners.append(await _listen(routes, settings.prometheus_metrics_host, settings.prometheus_metrics_port))
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _probe(probe: Probe) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        good, reason = probe()
        return web.Response(status=200 if good else 503, text=reason + "\n")

    return answer


def _text(text: Callable[[], bytes]) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=text(), content_type="text/plain", charset="utf-8")

    return answer


async def _listen(routes: list[web.RouteDef], host: str, port: int) -> web.AppRunner:
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host or None, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
