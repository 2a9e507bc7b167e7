"""Events on objects that cannot be enforced, against a server that keeps Events by their names as a real one does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from felixpy.agent import events as module
from felixpy.agent.events import Events
from felixpy.kubernetes.access import Access, Identity
from felixpy.kubernetes.client import Api
from felixpy.model.resources import Kind, ResourceKey

POLICY = ResourceKey(Kind.KUBERNETES_NETWORK_POLICY, "web", "shop")
GLOBAL = ResourceKey(Kind.GLOBAL_NETWORK_POLICY, "guard")
POD = ResourceKey(Kind.WORKLOAD_ENDPOINT, "p", "shop")
V3, NETWORKING = "/apis/projectcalico.org/v3", "/apis/networking.k8s.io/v1"


class Server:
    """``refusal``: the status with which Events are refused. ``asked``: methods and paths as they came."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], dict[str, Any]] = {}
        self.asked: list[str] = []
        self.refusal = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        resources = {V3: ["globalnetworkpolicies"], NETWORKING: ["networkpolicies"]}
        if request.path in resources:
            return web.json_response({"resources": [{"name": name} for name in resources[request.path]]})
        if request.method == "GET" and request.path.endswith(("/globalnetworkpolicies", "/networkpolicies")):
            name = request.query["fieldSelector"].removeprefix("metadata.name=")
            found = [] if name == "gone" else [{"metadata": {"name": name, "uid": "u-1", "resourceVersion": "7"}}]
            return web.json_response({"items": found})
        if request.method == "POST" and request.path.endswith("/events"):
            return await self.take(request)
        return web.json_response({"code": 404}, status=404)

    async def take(self, request: web.Request) -> web.Response:
        if self.refusal:
            return web.json_response({"message": "no right", "reason": "Forbidden"}, status=self.refusal)
        event = msgspec.json.decode(await request.read())
        where = request.path.split("/")[4], event["metadata"]["name"]
        if where in self.events:
            return web.json_response({"reason": "AlreadyExists"}, status=409)
        self.events[where] = event
        return web.json_response(event, status=201)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Api]:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with Api(Access(Identity(f"http://127.0.0.1:{runner.addresses[0][1]}"))) as api:
                yield api
        finally:
            await runner.cleanup()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPACING_SECONDS", 0)


def test_a_problem_is_told_on_its_object_once_by_all_nodes_and_again_when_it_changes() -> None:
    async def scenario() -> None:
        server, standing = Server(), [(POLICY, "spec.ingress[0]: no such field"), (GLOBAL, "http"), (POD, "not ours")]
        async with server.running() as api:
            nodes = [Events(api, lambda: standing) for _ in range(3)]
            for node in nodes:
                await node.tell()
            assert sorted(where for where, _ in server.events) == ["default", "shop"]
            (event,) = (found for (where, _), found in server.events.items() if where == "shop")
            assert event["involvedObject"] == {
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "name": "web", "namespace": "shop",
                "uid": "u-1", "resourceVersion": "7",
            }  # fmt: skip
            assert (event["type"], event["reason"], event["message"]) == (
                "Warning", "NotEnforced", "spec.ingress[0]: no such field"
            )  # fmt: skip
            asked = len(server.asked)
            for node in nodes:
                await node.tell()
            assert len(server.asked) == asked, "what stands is not told again"
            standing[0] = (POLICY, "another reason" * 200)
            await nodes[0].tell()
            assert len(server.events) == 3
            assert max(len(event["message"]) for event in server.events.values()) == module.MAX_MESSAGE
            del standing[0]
            await nodes[0].tell()
            standing.insert(0, (POLICY, "spec.ingress[0]: no such field"))
            await nodes[0].tell()
            assert len(server.events) == 3, "what comes back within the hour is still there"

    asyncio.run(scenario())


def test_an_object_that_is_gone_has_no_event_and_a_refusal_is_one_line_and_tried_again() -> None:
    async def scenario() -> None:
        server, standing = Server(), [(GLOBAL._replace(name="gone"), "why"), (GLOBAL, "why")]
        async with server.running() as api:
            events = Events(api, lambda: standing)
            server.refusal = 403
            with capture_logs() as logs:
                await events.tell()
                await events.tell()
            assert [line["event"] for line in logs] == [module.NOT_TOLD]
            assert server.events == {}
            server.refusal = 0
            await events.tell()
            assert [event["involvedObject"]["name"] for event in server.events.values()] == ["guard"]

    asyncio.run(scenario())


def test_events_come_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def scenario() -> None:
        server = Server()
        standing = [(GLOBAL._replace(name=f"p{number}"), "why") for number in range(5)]
        async with server.running() as api:
            monkeypatch.setattr(module, "SPACING_SECONDS", 1.5)
            monkeypatch.setattr(module.asyncio, "sleep", pause)
            await Events(api, lambda: standing).tell()
        assert len(server.events) == 5

    asyncio.run(scenario())
    assert [seconds for seconds in pauses if seconds == 1.5] == [1.5] * 5
