"""An API server for one node's CNI tests: collections with list, watch, create, replace and delete, all in memory.

Not a judge of the source (that is ``tests/kubernetes``): it answers well, and counts what it is asked. It runs in a
thread of the test, in the test's network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

Object = dict[str, Any]

GROUPS: dict[str, list[str]] = {
    "api/v1": ["pods", "nodes", "namespaces", "serviceaccounts", "services"],
    "apis/projectcalico.org/v3": [
        "ippools", "ipamblocks", "blockaffinities", "ipamhandles", "ipamconfigurations", "ipreservations",
        "felixconfigurations",
    ],
}  # fmt: skip
_PATH = re.compile(
    r"/(?P<group>api/v1|apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?(?:/(?P<plural>[^/]+))?(?:/(?P<name>[^/]+))?(?:/(?P<sub>status))?"
)


class Request(NamedTuple):
    method: str
    path: str


class Cluster:
    """``requests`` are all but watches and lists, as they came."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.requests: list[Request] = []
        self.port = 0
        self._version = 100
        self._watchers: list[tuple[str, str, asyncio.Queue[Object | None]]] = []
        self._loop = asyncio.new_event_loop()

    # --- for the test ------------------------------------------------------------------------------------

    def put(self, plural: str, name: str, namespace: str = "", **fields: Any) -> None:
        """As if somebody else had written it; from any thread."""
        metadata = {"name": name, "uid": f"uid-{name}", **fields.pop("metadata", {})}
        if namespace:
            metadata["namespace"] = namespace
        self._call(self._put, plural, namespace, name, {"metadata": metadata, **fields})

    def pod(self, name: str, annotations: dict[str, str] | None = None, namespace: str = "default") -> None:
        metadata = {"annotations": annotations or {}, "uid": f"0a1b2c3d-{name}"}
        self.put("pods", name, namespace, metadata=metadata, spec={"nodeName": "n1"}, status={"phase": "Pending"})

    def delete(self, plural: str, name: str, namespace: str = "") -> None:
        self._call(self._delete, plural, namespace, name)

    def get(self, plural: str, name: str, namespace: str = "") -> Object | None:
        return self.objects.get((plural, namespace, name))

    def specs(self, plural: str) -> dict[str, Any]:
        return {name: each["spec"] for (kind, _, name), each in list(self.objects.items()) if kind == plural}

    def writes(self) -> list[str]:
        """Requests that changed something, but for those about the node itself."""
        found = [one for one in self.requests if one.method in ("POST", "PUT", "DELETE", "PATCH")]
        return [f"{one.method} {one.path}" for one in found if "/nodes/" not in one.path]

    def kubeconfig(self, folder: Path) -> Path:
        path = folder / "kubeconfig"
        server = f"http://127.0.0.1:{self.port}"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": server}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )
        return path

    @contextlib.contextmanager
    def running(self) -> Iterator[Cluster]:
        started = threading.Event()
        thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        thread.start()
        started.wait()
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()

    # --- the server --------------------------------------------------------------------------------------

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        started.set()
        await self._stop.wait()
        for _, _, events in self._watchers:
            events.put_nowait(None)
        await runner.cleanup()

    def _call(self, what: Any, *arguments: Any) -> None:
        done = threading.Event()

        def run() -> None:
            what(*arguments)
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait()

    def _put(self, plural: str, namespace: str, name: str, each: Object) -> Object:
        key = plural, namespace, name
        self._version += 1
        each = {**each, "metadata": {**each["metadata"], "resourceVersion": str(self._version)}}
        kind = "MODIFIED" if key in self.objects else "ADDED"
        self.objects[key] = each
        self._tell(plural, kind, each)
        return each

    def _delete(self, plural: str, namespace: str, name: str) -> Object:
        self._version += 1
        each = self.objects.pop((plural, namespace, name))
        each = {**each, "metadata": {**each["metadata"], "resourceVersion": str(self._version)}}
        self._tell(plural, "DELETED", each)
        return each

    def _tell(self, plural: str, kind: str, each: Object) -> None:
        for watched, selector, events in self._watchers:
            if watched == plural and _selected(each, selector):
                events.put_nowait({"type": kind, "object": each})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        match = _PATH.fullmatch(request.path)
        if match is None:
            return _refusal(404, "NotFound")
        group, namespace, plural, name = match["group"], match["namespace"] or "", match["plural"], match["name"] or ""
        if group not in GROUPS or (plural and plural not in GROUPS[group]):
            return _refusal(404, "NotFound")
        if not plural:
            return web.json_response({"resources": [{"name": each} for each in GROUPS[group]]})
        if request.method == "GET" and not name:
            return await (self._watch if "watch" in request.query else self._list)(request, plural)
        self.requests.append(Request(request.method, request.path))
        body = await request.json() if request.can_read_body else {}
        if match["sub"] or request.method == "PATCH":
            held = self.objects.get((plural, namespace, name))
            return web.json_response(held) if held else _refusal(404, "NotFound")
        return self._one(request.method, plural, namespace, name or body["metadata"]["name"], body)

    def _one(self, method: str, plural: str, namespace: str, name: str, body: Object) -> web.StreamResponse:
        held = self.objects.get((plural, namespace, name))
        version = held["metadata"]["resourceVersion"] if held else ""
        if method == "POST":
            if held:
                return _refusal(409, "AlreadyExists")
            body["metadata"]["uid"] = f"uid-{self._version}"
            return web.json_response(self._put(plural, namespace, name, body), status=201)
        if held is None:
            return _refusal(404, "NotFound")
        wanted = body.get("preconditions", {}) if method == "DELETE" else body.get("metadata", {})
        if method != "GET" and wanted.get("resourceVersion", version) != version:
            return _refusal(409, "Conflict")
        if method == "PUT":
            return web.json_response(self._put(plural, namespace, name, body))
        if method == "DELETE":
            return web.json_response(self._delete(plural, namespace, name))
        return web.json_response(held)

    def _items(self, plural: str, selector: str) -> list[Object]:
        return [each for (kind, _, _), each in self.objects.items() if kind == plural and _selected(each, selector)]

    async def _list(self, request: web.Request, plural: str) -> web.StreamResponse:
        items = self._items(plural, request.query.get("fieldSelector", ""))
        return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        selector = request.query.get("fieldSelector", "")
        events: asyncio.Queue[Object | None] = asyncio.Queue()
        stream = web.StreamResponse()
        if request.query.get("sendInitialEvents"):
            for each in self._items(plural, selector):
                events.put_nowait({"type": "ADDED", "object": each})
            metadata = {
                "resourceVersion": str(self._version), "annotations": {"k8s.io/initial-events-end": "true"},
            }  # fmt: skip
            events.put_nowait({"type": "BOOKMARK", "object": {"metadata": metadata}})
        entry = plural, selector, events
        self._watchers.append(entry)
        await stream.prepare(request)
        try:
            while (event := await events.get()) is not None:
                await stream.write(json.dumps(event).encode() + b"\n")
        finally:
            self._watchers.remove(entry)
        return stream


def _selected(each: Object, selector: str) -> bool:
    field, negated, value = re.fullmatch(r"(?:(.*?)(!?)=(.*))?", selector).groups()  # type: ignore[union-attr]
    if not field:
        return True
    found: Any = each
    for part in field.split("."):
        found = found.get(part, "") if isinstance(found, dict) else ""
    return bool((found == value) != bool(negated))


def _refusal(code: int, reason: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": reason}, status=code)
