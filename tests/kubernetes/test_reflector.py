"""The reflector against an API server on its bad days. Each test counts what the follower is told: each change once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from felixpy.demo.patience import limit
from felixpy.kubernetes import reflector as module
from felixpy.kubernetes.access import Access, Identity
from felixpy.kubernetes.client import UNANSWERED, Api, ApiError
from felixpy.kubernetes.reflector import Collection, ObjectKey, Reflector
from tests.kubernetes.api_server import PATH, FakeServer, thing

A, B, C, D = (("default", name) for name in "abcd")
PATIENCE_SECONDS = 60


class Follower:
    """What was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str | None]] = []
        self.known: dict[ObjectKey, str] = {}
        self.lists = 0
        self.failures: list[ApiError] = []
        self.recoveries = 0

    def changed(self, key: ObjectKey, content: str | None) -> None:
        assert self.known.get(key) != content, f"{key} is told again"
        self.told.append((key[1], content))
        if content is None:
            del self.known[key]
        else:
            self.known[key] = content

    def listed(self) -> None:
        self.lists += 1

    def failed(self, error: ApiError) -> None:
        self.failures.append(error)

    def recovered(self) -> None:
        self.recoveries += 1


def color(raw: msgspec.Raw) -> str:
    found: dict[str, Any] = msgspec.json.decode(raw)
    return str(found["spec"]["color"])


@asynccontextmanager
async def following(
    server: FakeServer, follower: Follower, identity: Identity | None = None
) -> AsyncIterator[Reflector[str]]:
    api = Api(Access(identity or Identity(server.url)))
    reflector = Reflector(api, Collection(PATH, color), follower)
    task = asyncio.create_task(reflector.run())
    try:
        yield reflector
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()


async def until(condition: Callable[[], bool]) -> None:
    async with limit(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  whatever the tests wait for
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_LAST_SECONDS", 0.05)
    monkeypatch.setattr(module, "BACKOFF_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(module, "FORBIDDEN_SECONDS", 0.05)


both_lists = pytest.mark.parametrize("streams_lists", [True, False], ids=["streamed", "pages"])


@both_lists
def test_list_then_watch(streams_lists: bool) -> None:
    async def run() -> None:
        server, follower = FakeServer(streams_lists=streams_lists), Follower()
        server.put(*(thing(name, "red") for name in "abcde"))
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            assert follower.known == {("default", name): "red" for name in "abcde"}
            server.put(thing("a", "blue"))
            server.delete("b")
            await until(lambda: len(follower.told) == 7)
            assert follower.told[5:] == [("a", "blue"), ("b", None)]
            if not streams_lists:  # asked for once, and then never again
                queries = server.requests
                assert [query.get("continue") for query in queries[1:4]] == [None, "2", "4"]
                assert len([query for query in queries if "sendInitialEvents" in query]) == 1

    asyncio.run(run())


@both_lists
def test_a_change_of_what_is_not_decoded_is_not_told(streams_lists: bool) -> None:
    async def run() -> None:
        server, follower = FakeServer(streams_lists=streams_lists), Follower()
        server.put(thing("a", "red"))
        async with server.running(), following(server, follower) as reflector:
            await until(lambda: follower.lists == 1)
            server.put(thing("a", "red") | {"status": {"ready": True}})
            await until(lambda: reflector.held[A].version == str(server.version))
            assert follower.told == [("a", "red")]

    asyncio.run(run())


@both_lists
def test_after_410_nothing_goes_before_the_list_is_complete_and_nothing_is_told_twice(streams_lists: bool) -> None:
    async def run() -> None:
        server, follower = FakeServer(streams_lists=streams_lists), Follower()
        server.put(thing("a", "red"), thing("b", "red"), thing("c", "red"))
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            lists_until_now = len(server.requests)

            async def hang_up(request: web.Request) -> web.StreamResponse:
                assert set(follower.known) == {A, B, C}, "removed by a list that was not complete"
                stream = web.StreamResponse()
                await stream.prepare(request)
                await server.send(stream, "ADDED", server.objects[A])
                assert request.transport is not None
                request.transport.close()
                return stream

            async def expired(request: web.Request) -> web.StreamResponse:
                return server.refusal(410, "Expired", "too old resource version")

            server.forget("b")
            server.script.extend([expired, hang_up, hang_up])
            server.cut()
            await until(lambda: follower.lists == 2)
            assert follower.told[3:] == [("b", None)]
            assert len(server.requests) > lists_until_now + 3

    asyncio.run(run())


def test_410_inside_the_stream_is_a_list_anew() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()
        server.put(thing("a", "red"), thing("b", "red"))
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            server.forget("b")
            status = {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"}
            server.tell((0, "ERROR", status))
            await until(lambda: follower.lists == 2)
            assert follower.told[2:] == [("b", None)]
            assert follower.failures == []  # an ordinary thing

    asyncio.run(run())


def test_500_inside_the_stream_is_told_and_mended() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()
        server.put(thing("a", "red"))
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            server.tell((0, "ERROR", {"kind": "Status", "code": 500, "message": "etcdserver: leader changed"}))
            await until(lambda: follower.lists == 2)
            assert "leader changed" in str(follower.failures[0])
            assert follower.recoveries == 1
            assert follower.told == [("a", "red")]

    asyncio.run(run())


def test_a_watch_that_ends_goes_on_where_it_was() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()
        server.put(thing("a", "red"))
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            server.put(thing("a", "blue"))
            await until(lambda: follower.known[A] == "blue")
            version = server.version
            server.cut()
            await until(lambda: server.requests[-1].get("resourceVersion") == str(version))
            server.put(thing("b", "red"))
            await until(lambda: B in follower.known)
            assert follower.lists == 1

    asyncio.run(run())


def test_bookmarks_move_the_version_on() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()
        server.put(thing("a", "red"))
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            server.version += 1000
            server.oldest = server.version
            server.tell((0, "BOOKMARK", {"kind": "Thing", "metadata": {"resourceVersion": str(server.version)}}))
            server.put(thing("b", "red"))  # behind the bookmark: both are taken when this one is
            await until(lambda: B in follower.known)
            server.cut()
            await until(lambda: "resourceVersion" in server.requests[-1])
            server.put(thing("c", "red"))
            await until(lambda: C in follower.known)
            assert follower.lists == 1

    asyncio.run(run())


def test_events_twice_and_out_of_order_are_no_news() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()
        server.put(thing("a", "red"), thing("b", "red"))
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            server.put(thing("a", "green"))
            server.put(thing("a", "blue"))
            old_a, new_a = server.history[-2:]
            server.delete("b")
            gone_b, old_b = server.history[-1], server.history[1]
            for event in (new_a, old_a, gone_b, old_b, new_a):
                server.tell(event)
            server.put(thing("c", "red"))
            await until(lambda: C in follower.known)
            assert follower.told[2:] == [("a", "green"), ("a", "blue"), ("b", None), ("c", "red")]

    asyncio.run(run())


def test_an_object_that_was_made_anew_is_another_one() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()
        server.put(thing("a", "red"))
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            server.delete("a")
            server.put(thing("a", "red"))
            await until(lambda: len(follower.told) == 3)
            assert follower.told == [("a", "red"), ("a", None), ("a", "red")]

    asyncio.run(run())


def test_lines_that_come_byte_by_byte_or_many_at_once_or_cut_off() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()

        async def slow(request: web.Request) -> web.StreamResponse:
            stream = web.StreamResponse()
            await stream.prepare(request)
            for byte in msgspec.json.encode({"type": "ADDED", "object": server.objects[A]}) + b"\n":
                await stream.write(bytes([byte]))
            b, c, d = (
                msgspec.json.encode({"type": "ADDED", "object": server.objects[key]}) + b"\n" for key in (B, C, D)
            )
            await stream.write(b + c[:50])
            await until(lambda: B in follower.known)
            await stream.write(c[50:] + d[:-20])  # the last event is cut off: it never was
            return stream

        seen: list[set[ObjectKey]] = []

        async def well(request: web.Request) -> web.StreamResponse:
            seen.append(set(follower.known))
            return await server.watch(request)

        server.put(*(thing(name, "red" * 200) for name in "abcd"))
        server.script.extend([slow, well])
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            assert seen == [{A, B, C}]
            assert [name for name, _ in follower.told] == ["a", "b", "c", "d"]
            assert "before it was complete" in str(follower.failures[0])

    asyncio.run(run())


def test_a_server_that_is_away_or_talks_nonsense_changes_nothing() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()
        server.put(thing("a", "red"))

        async def nonsense(request: web.Request) -> web.StreamResponse:
            return web.Response(text="<html>welcome</html>\n")

        async def broken(request: web.Request) -> web.StreamResponse:
            return web.Response(status=503, text="no backend")

        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            server.script.extend([broken, nonsense, broken, nonsense])
            server.cut()
            await until(lambda: not server.script)
            server.put(thing("a", "blue"))
            await until(lambda: follower.known[A] == "blue")
            assert follower.told == [("a", "red"), ("a", "blue")]
            assert {error.status for error in follower.failures} >= {503}

    asyncio.run(run())


def test_an_outage_is_one_line_for_all_that_is_followed_and_one_when_all_have_an_answer() -> None:
    async def run() -> None:
        server, followers = FakeServer(), [Follower() for _ in range(3)]
        async with server.running():
            api = Api(Access(Identity(server.url)))
            tasks = [asyncio.create_task(Reflector(api, Collection(PATH, color), each).run()) for each in followers]
            await until(lambda: all(each.lists == 1 for each in followers))
        with capture_logs() as logs:
            await until(lambda: all(len(each.failures) > 1 for each in followers))
            async with server.running():
                api.access.server = server.url  # another port
                await until(lambda: all(each.recoveries for each in followers))
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        assert [line["event"] for line in logs] == [UNANSWERED, f"{UNANSWERED}: over"]
        assert "cannot be reached: Connection refused" in logs[0]["reason"]
        await api.close()

    asyncio.run(run())


def test_who_is_refused_after_an_outage_has_an_answer() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()

        async def forbidden(request: web.Request) -> web.StreamResponse:
            return server.refusal(403, "Forbidden", "things is forbidden")

        async with server.running():
            api = Api(Access(Identity(server.url)))
            task = asyncio.create_task(Reflector(api, Collection(PATH, color), follower).run())
            await until(lambda: follower.lists == 1)
        with capture_logs() as logs:
            await until(lambda: len(follower.failures) > 1)
            server.script.append(forbidden)
            async with server.running():
                api.access.server = server.url
                await until(lambda: bool(follower.recoveries))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        cannot = f"cannot follow {PATH}"
        assert [line["event"] for line in logs] == [UNANSWERED, f"{UNANSWERED}: over", cannot, f"{cannot}: over"]
        await api.close()

    asyncio.run(run())


def test_a_server_that_hangs_up_on_everybody_is_not_asked_without_a_pause() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()

        async def nothing(request: web.Request) -> web.StreamResponse:
            stream = web.StreamResponse()
            await stream.prepare(request)
            return stream

        pauses = 0

        async with server.running(), following(server, follower) as reflector:
            await until(lambda: follower.lists == 1)
            server.script.extend([nothing] * 20)
            reflector_pause = reflector._pause

            async def pause() -> None:
                nonlocal pauses
                pauses += 1
                await reflector_pause()

            reflector._pause = pause  # type: ignore[method-assign]
            server.cut()
            await until(lambda: not server.script)
            assert pauses >= 19

    asyncio.run(run())


def test_a_collection_that_is_forbidden_is_told_and_asked_again() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()

        async def forbidden(request: web.Request) -> web.StreamResponse:
            return server.refusal(403, "Forbidden", 'things is forbidden: User "x" cannot list resource "things"')

        server.script.extend([forbidden, forbidden])
        server.put(thing("a", "red"))
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            assert [error.status for error in follower.failures] == [403, 403]
            assert 'cannot list resource "things"' in str(follower.failures[0])

    asyncio.run(run())


def test_a_collection_that_is_not_there_ends_it_and_removes_nothing_by_itself() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()
        server.put(thing("a", "red"))

        async def missing(request: web.Request) -> web.StreamResponse:
            return server.refusal(404, "NotFound", "the server could not find the requested resource")

        async with server.running():
            api = Api(Access(Identity(server.url)))
            reflector = Reflector(api, Collection(PATH, color), follower)
            task = asyncio.create_task(reflector.run())
            await until(lambda: follower.lists == 1)
            server.script.append(missing)
            server.cut()
            async with limit(PATIENCE_SECONDS):
                await task
            assert follower.told == [("a", "red")]
            reflector.forget()
            assert follower.told == [("a", "red"), ("a", None)]
            await api.close()

    asyncio.run(run())


def test_the_servers_address_is_told_before_what_it_delivers() -> None:
    async def run() -> None:
        server, follower, told = FakeServer(), Follower(), list[tuple[bytes, int]]()
        server.put(thing("a", "red"))
        async with server.running():
            api = Api(Access(Identity(server.url)))
            api.on_connected = lambda peer: told.append((peer, len(follower.told)))
            task = asyncio.create_task(Reflector(api, Collection(PATH, color), follower).run())
            await until(lambda: follower.lists == 1)
            await until(lambda: bool(told))
            assert told[0] == (bytes((127, 0, 0, 1)), 0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await api.close()

    asyncio.run(run())


def test_an_older_etcd_after_a_restore_is_the_truth() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()
        server.version = 5000
        server.put(thing("a", "red"), thing("b", "red"))
        async with server.running(), following(server, follower):
            await until(lambda: follower.lists == 1)
            server.version, server.history = 100, []
            server.objects.clear()
            server.put(thing("a", "blue"))
            server.tell((0, "ERROR", {"kind": "Status", "code": 410, "reason": "Expired"}))
            await until(lambda: follower.lists == 2)
            assert follower.known == {A: "blue"}
            server.put(thing("b", "red"))
            await until(lambda: B in follower.known)

    asyncio.run(run())


def test_an_object_that_somebody_asked_for_comes_ahead_of_the_watch() -> None:
    async def run() -> None:
        server, follower = FakeServer(), Follower()
        server.put(thing("a", "red"))
        async with server.running(), following(server, follower) as reflector:
            await until(lambda: follower.lists == 1)
            early = thing("b", "red")
            early["metadata"]["resourceVersion"] = str(server.version + 1)
            reflector.tell(B, msgspec.Raw(msgspec.json.encode(early)))
            assert follower.told[-1] == ("b", "red")
            server.put(thing("b", "red"))
            server.put(thing("c", "red"))
            await until(lambda: C in follower.known)
            assert [name for name, _ in follower.told] == ["a", "b", "c"]

    asyncio.run(run())
