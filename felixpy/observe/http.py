"""The pages: ``/liveness``, ``/readiness`` and ``/metrics``, by aiohttp, which only this module imports."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from felixpy.config import Settings
from felixpy.observe.server import Details, ListenError, Probe


@asynccontextmanager
async def serve(
    settings: Settings, live: Probe, ready: Probe, metrics: Callable[[], bytes], details: Details = dict
) -> AsyncIterator[None]:
    """Serve what the settings switch on, for the duration of the context.

    Raises:
        ListenError: an address cannot be had.
    """
    runners = []
    try:
        if settings.health_enabled:
            routes = [web.get("/liveness", _probe(live, details)), web.get("/readiness", _probe(ready, details))]
            runners.append(await _listen(routes, "Health", settings.health_host, settings.health_port))
        if settings.prometheus_metrics_enabled:
            routes = [web.get("/metrics", _text(metrics))]
            host, port = settings.prometheus_metrics_host, settings.prometheus_metrics_port
            runners.append(await _listen(routes, "PrometheusMetrics", host, port))
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _probe(probe: Probe, details: Details) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        good, reason = probe()
        status, found = 200 if good else 503, details()
        if "application/json" in request.headers.get("Accept", "") or request.query.get("format") == "json":
            return web.json_response({"ok": good, "reason": reason, **found}, status=status)
        components = found.get("components", {}).items()
        lines = [f"{name:<8} {'ok ' if one['ok'] else 'bad'} {one['detail']}" for name, one in components]
        return web.Response(status=status, text="\n".join((reason, *lines)) + "\n")

    return answer


def _text(text: Callable[[], bytes]) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=text(), content_type="text/plain", charset="utf-8")

    return answer


async def _listen(routes: list[web.RouteDef], setting: str, host: str, port: int) -> web.AppRunner:
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host or None, port).start()
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that the resolver cannot even ask for
        await runner.cleanup()
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else str(error)
        raise ListenError(
            f"cannot listen on {host or '*'} port {port}: {reason}; set {setting}Port or {setting}Host to what is free"
        ) from None
    return runner
