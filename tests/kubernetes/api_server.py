"""An API server of one collection that does what real ones do on bad days: as told, request by request.

It keeps objects by key with a version that only grows, and a history as long as it is told. ``script`` holds what is
done to the next requests instead of answering them well; when it is empty, every request is answered well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

JSON = dict[str, Any]
Event = tuple[int, str, JSON]
Deed = Callable[[web.Request], Awaitable[web.StreamResponse]]

PATH = "/api/v1/things"


def thing(name: str, color: str = "", namespace: str = "default") -> JSON:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"color": color}}


class FakeServer:
    """``requests`` are the queries as they came; ``page`` the most items of a page, whatever is asked for."""

    def __init__(self, *, streams_lists: bool = True) -> None:
        self.objects: dict[tuple[str, str], JSON] = {}
        self.version = 100
        self.oldest = 0
        """The first version that the history still has."""
        self.history: list[Event] = []
        self.script: deque[Deed] = deque()
        self.requests: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.streams_lists = streams_lists
        self.url = ""
        self._watchers: set[asyncio.Queue[Event | None]] = set()

    @contextlib.asynccontextmanager
    async def running(self, **site: Any) -> AsyncIterator[FakeServer]:
        app = web.Application()
        app.router.add_get(PATH, self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        listening = web.TCPSite(runner, "127.0.0.1", 0, **site)
        await listening.start()
        port = runner.addresses[0][1]
        self.url = f"{'https' if site.get('ssl_context') else 'http'}://127.0.0.1:{port}"
        try:
            yield self
        finally:
            self.cut()
            await runner.cleanup()

    # --- what happens to the objects ---------------------------------------------------------------------------

    def put(self, *things: JSON) -> None:
        for each in things:
            key = each["metadata"]["namespace"], each["metadata"]["name"]
            self._record("MODIFIED" if key in self.objects else "ADDED", each)
            self.objects[key] = self.history[-1][2]

    def delete(self, name: str, namespace: str = "default") -> None:
        self._record("DELETED", self.objects.pop((namespace, name)))

    def forget(self, name: str, namespace: str = "default") -> None:
        """Lose an object without an event, and the history with it: as a watch that was away too long sees it."""
        del self.objects[namespace, name]
        self.expire()

    def expire(self) -> None:
        self.version += 1
        self.oldest = self.version

    def cut(self) -> None:
        """End all watches that are open."""
        for watcher in self._watchers:
            watcher.put_nowait(None)

    def _record(self, kind: str, each: JSON) -> None:
        self.version += 1
        metadata = each["metadata"] | {"resourceVersion": str(self.version)}
        self.history.append((self.version, kind, each | {"metadata": metadata}))
        self.tell(self.history[-1])

    def tell(self, event: Event) -> None:
        """Tell all watches something, be it true or not."""
        for watcher in self._watchers:
            watcher.put_nowait(event)

    # --- answers -----------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(dict(request.query))
        self.headers.append(dict(request.headers))
        if self.script:
            return await self.script.popleft()(request)
        if "watch" in request.query:
            return await self.watch(request)
        return self.page(request)

    def page(self, request: web.Request, size: int = 2) -> web.StreamResponse:
        start = int(request.query.get("continue", "0"))
        items = [self.objects[key] for key in sorted(self.objects)]
        metadata: JSON = {"resourceVersion": str(self.version)}
        if start + size < len(items):
            metadata["continue"] = str(start + size)
        return web.json_response({"kind": "ThingList", "metadata": metadata, "items": items[start : start + size]})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse()
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        since = self.version
        if request.query.get("sendInitialEvents"):
            if not self.streams_lists:
                return self.refusal(422, "Invalid", "sendInitialEvents is forbidden")
            snapshot = [self.objects[key] for key in sorted(self.objects)]
            self._watchers.add(events)
            await stream.prepare(request)
            for each in snapshot:
                await self.send(stream, "ADDED", each)
            await self.bookmark(stream, since, initial_events_end=True)
        else:
            since = int(request.query["resourceVersion"])
            if since < self.oldest:
                return self.refusal(410, "Expired", "too old resource version")
            for event in self.history:
                if event[0] > since:
                    events.put_nowait(event)
            self._watchers.add(events)
            await stream.prepare(request)
        try:
            while (event_or_end := await events.get()) is not None:
                await self.send(stream, *event_or_end[1:])
        finally:
            self._watchers.discard(events)
        return stream

    @staticmethod
    async def send(stream: web.StreamResponse, kind: str, each: JSON) -> None:
        await stream.write(msgspec.json.encode({"type": kind, "object": each}) + b"\n")

    async def bookmark(self, stream: web.StreamResponse, version: int, *, initial_events_end: bool = False) -> None:
        metadata: JSON = {"resourceVersion": str(version)}
        if initial_events_end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        await self.send(stream, "BOOKMARK", {"kind": "Thing", "metadata": metadata})

    @staticmethod
    def refusal(code: int, reason: str, message: str) -> web.Response:
        return web.json_response(
            {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}, status=code
        )
