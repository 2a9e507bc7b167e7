"""The pages: ``/liveness``, ``/readiness`` and ``/metrics``, by aiohttp, which only this module imports."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aiohttp import web

from felixpy.config import Settings
from felixpy.observe.connections import Listener
from felixpy.observe.probes import Details, ListenError, Probe


@asynccontextmanager
async def serve(
    settings: Settings, live: Probe, ready: Probe, metrics: Callable[[], Awaitable[bytes]], details: Details = dict
) -> AsyncIterator[None]:
    """Serve what the settings switch on, for the duration of the context.

    Raises:
        ListenError: an address cannot be had.
    """
    stack = AsyncExitStack()
    try:
        if settings.health_enabled:
            routes = [web.get("/liveness", _probe(live, details)), web.get("/readiness", _probe(ready, details))]
            await _listen(stack, routes, "Health", settings.health_host, settings.health_port)
        if settings.prometheus_metrics_enabled:
            routes = [web.get("/metrics", _text(metrics))]
            host, port = settings.prometheus_metrics_host, settings.prometheus_metrics_port
            await _listen(stack, routes, "PrometheusMetrics", host, port)
        yield
    finally:
        await stack.aclose()


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


def _text(text: Callable[[], Awaitable[bytes]]) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=await text(), content_type="text/plain", charset="utf-8")

    return answer


async def _listen(stack: AsyncExitStack, routes: list[web.RouteDef], setting: str, host: str, port: int) -> None:
    listeners: list[Listener] = []

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        for listener in listeners:
            listener.heard(request.transport)
        return await handler(request)

    app = web.Application(middlewares=[note])
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    if runner.server is None:
        raise RuntimeError("aiohttp made no server")
    try:
        for bound in await _bound(host, port):
            listener = Listener(bound, runner.server, f"{bound.getsockname()[0]} port {port}")
            stack.callback(listener.close)
            listeners.append(listener)
        for listener in listeners:
            listener.start()
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that the resolver cannot even ask for
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else str(error)
        raise ListenError(f"cannot listen on {host or '*'} port {port}: {reason}; {_advice(setting, number)}") from None


def _advice(setting: str, number: int) -> str:
    if number == errno.EADDRINUSE:
        return f"set {setting}Port or {setting}Host to what is free"
    return f"set {setting}Host to an address of this machine"


def _names(host: str) -> tuple[str | None, ...]:
    """``localhost`` is loopback without asking anybody (RFC 6761 section 6.3): not every hosts file has it."""
    if host.lower().removesuffix(".") == "localhost":
        return "127.0.0.1", "::1"
    return (host or None,)


_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


async def _bound(host: str, port: int) -> list[socket.socket]:
    """A socket per address of the host, or of the machine, without those of a family that is off on this machine.

    ``localhost`` is ``::1`` as well in most ``/etc/hosts``, whatever ``disable_ipv6`` says.

    Raises:
        OSError: an address is taken, or none of them is one of this machine.
        UnicodeError: the name is none.
    """
    loop = asyncio.get_running_loop()
    found = [
        address
        for name in _names(host)
        for address in await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ]
    bound: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            try:
                bound.append(_bind(family, address))
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                absent = error
        if absent and not bound:
            raise absent
    except OSError:
        for one in bound:
            one.close()
        raise
    return bound


def _bind(family: int, address: tuple[Any, ...]) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one
