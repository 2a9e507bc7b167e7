"""Probes and metrics over HTTP: what is switched on answers, what is off is closed, a taken port is said plainly."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from felixpy.config import Settings
from felixpy.demo.patience import limit
from felixpy.observe import server
from felixpy.observe.http import serve
from felixpy.observe.metrics import Metrics
from felixpy.observe.probes import ListenError
from felixpy.observe.server import serve_latest

HEALTH, METRICS, OTHER = 9099, 9091, 9199
ON = Settings(
    health_enabled=True,
    health_host="127.0.0.1",
    health_port=HEALTH,
    prometheus_metrics_enabled=True,
    prometheus_metrics_host="127.0.0.1",
    prometheus_metrics_port=METRICS,
)

pytestmark = pytest.mark.usefixtures("network")  # every port is free in a network of one's own


class State:
    """What the probes answer."""

    def __init__(self) -> None:
        self.live = (True, "live")
        self.ready = (False, "not ready: IPv6; no answer from the source yet")

    def is_live(self) -> tuple[bool, str]:
        return self.live

    def is_ready(self) -> tuple[bool, str]:
        return self.ready


async def nothing() -> bytes:
    return b""


async def get(port: int, path: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text(), answer.headers["Content-Type"]


async def closed(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


def test_probes_say_why_not_and_change_with_the_agent() -> None:
    async def check() -> None:
        state = State()
        async with serve(ON, state.is_live, state.is_ready, Metrics("n1").latest):
            assert (await get(HEALTH, "/liveness"))[:2] == (200, "live\n")
            assert (await get(HEALTH, "/readiness"))[:2] == (503, f"{state.ready[1]}\n")
            state.live, state.ready = (False, "no progress for 91 s"), (True, "ready")
            assert (await get(HEALTH, "/liveness"))[:2] == (503, "no progress for 91 s\n")
            assert (await get(HEALTH, "/readiness"))[:2] == (200, "ready\n")
            assert (await get(HEALTH, "/metrics"))[0] == 404
            assert (await get(METRICS, "/readiness"))[0] == 404
        assert await closed(HEALTH)
        assert await closed(METRICS)

    asyncio.run(check())


def test_metrics_are_text_of_the_moment() -> None:
    async def check() -> None:
        metrics, state = Metrics("n1"), State()
        async with serve(ON, state.is_live, state.is_ready, metrics.latest):
            metrics.writes.inc(by=41)
            status, text, kind = await get(METRICS, "/metrics")
        assert (status, kind) == (200, "text/plain; charset=utf-8")
        assert "felixpy_kernel_writes_total 41.0" in text.splitlines()

    asyncio.run(check())


@pytest.mark.parametrize(("health", "metrics"), [(True, False), (False, True), (False, False)])
def test_only_what_is_switched_on_is_open(health: bool, metrics: bool) -> None:
    async def check() -> None:
        settings = replace(ON, health_enabled=health, prometheus_metrics_enabled=metrics)
        state = State()
        async with serve(settings, state.is_live, state.is_ready, nothing):
            assert await closed(HEALTH) is not health
            assert await closed(METRICS) is not metrics

    asyncio.run(check())


def test_nothing_is_served_unless_it_is_asked_for() -> None:
    assert not Settings().health_enabled
    assert not Settings().prometheus_metrics_enabled


def test_a_taken_port_is_one_sentence_with_its_setting_and_closes_the_other() -> None:
    async def check() -> None:
        taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", METRICS)
        state = State()
        with pytest.raises(ListenError) as caught:
            async with serve(ON, state.is_live, state.is_ready, nothing):
                pytest.fail("it was served")
        assert str(METRICS) in str(caught.value)
        assert "PrometheusMetricsPort" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert await closed(HEALTH)
        taken.close()
        await taken.wait_closed()

    asyncio.run(check())


def test_a_name_that_cannot_be_asked_for_is_a_sentence_as_well() -> None:
    async def check() -> None:
        state = State()
        with pytest.raises(ListenError, match=r"cannot listen on a\.\.b port 9099"):
            async with serve(replace(ON, health_host="a..b"), state.is_live, state.is_ready, nothing):
                pytest.fail("it was served")

    asyncio.run(check())


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name have these addresses."""
    families = [socket.AF_INET6 if ":" in one else socket.AF_INET for one in addresses]

    async def answer(self: object, host: str, port: int, **_: object) -> list[object]:
        return [
            (family, socket.SOCK_STREAM, 6, "", (one, port)) for family, one in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", answer)


def test_a_node_without_ipv6_serves_on_the_localhost_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """``::1 localhost`` stands in the hosts file of many a node with disable_ipv6=1."""
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    resolving(monkeypatch, "::1", "127.0.0.1")

    async def check() -> None:
        state = State()
        async with serve(replace(ON, health_host="localhost"), state.is_live, state.is_ready, nothing):
            assert not await closed(HEALTH)
        assert await closed(HEALTH)

    asyncio.run(check())


def test_where_none_of_the_addresses_is_here_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "192.0.2.77", "2001:db8::77")

    async def check() -> None:
        state = State()
        with pytest.raises(ListenError, match="cannot listen on elsewhere port 9099: Cannot assign requested address"):
            async with serve(replace(ON, health_host="elsewhere"), state.is_live, state.is_ready, nothing):
                pytest.fail("it was served")

    asyncio.run(check())


def test_without_a_host_both_families_are_served() -> None:
    async def check() -> None:
        state = State()
        async with serve(replace(ON, prometheus_metrics_host=""), state.is_live, state.is_ready, nothing):
            for address in ("127.0.0.1", "::1"):
                _, writer = await asyncio.open_connection(address, METRICS)
                writer.close()

    asyncio.run(check())


async def opened(port: int) -> None:
    async with limit(60):
        while await closed(port):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_the_stream_switches_ports_and_a_taken_one_is_only_told() -> None:
    async def check() -> None:
        taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", OTHER)
        changes: asyncio.Queue[Settings] = asyncio.Queue()
        state, refused = State(), dict[str, str]()
        task = asyncio.create_task(serve_latest(ON, changes, state.is_live, state.is_ready, nothing, dict, refused))
        await opened(HEALTH)
        await opened(METRICS)
        with capture_logs() as logs:
            changes.put_nowait(replace(ON, health_port=OTHER))
            await until(lambda: refused)
            await opened(METRICS)  # the other one goes on
            changes.put_nowait(replace(ON, health_port=HEALTH + 1, prometheus_metrics_enabled=False))
            await opened(HEALTH + 1)
        assert [log["event"] for log in logs] == ["health is not served", "health is not served: over"]
        assert str(OTHER) in logs[0]["reason"]
        assert refused == {}
        assert await closed(HEALTH)
        assert await closed(METRICS)
        changes.put_nowait(replace(ON, health_port=HEALTH + 1, prometheus_metrics_enabled=False, nodename="x"))
        assert (await get(HEALTH + 1, "/liveness"))[0] == 200  # nothing of it changed
        await end(task)
        assert await closed(HEALTH + 1)
        taken.close()
        await taken.wait_closed()

    asyncio.run(check())


def test_a_port_that_was_taken_is_served_once_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RETRY_SECONDS", 0.05)

    async def check() -> None:
        taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", OTHER)
        changes: asyncio.Queue[Settings] = asyncio.Queue()
        state, refused = State(), dict[str, str]()
        off = replace(ON, health_enabled=False, prometheus_metrics_port=METRICS + 1)
        task = asyncio.create_task(serve_latest(off, changes, state.is_live, state.is_ready, nothing, dict, refused))
        await opened(METRICS + 1)
        with capture_logs() as logs:
            changes.put_nowait(replace(ON, prometheus_metrics_port=OTHER))
            await until(lambda: refused)
            await asyncio.sleep(0.2)
            assert list(refused) == ["metrics are not served"]
            assert f"port {OTHER}" in refused["metrics are not served"]
            assert (await get(HEALTH, "/liveness"))[0] == 200
            taken.close()
            await taken.wait_closed()
            await opened(OTHER)
            await until(lambda: not refused)
        assert [log["event"] for log in logs] == ["metrics are not served", "metrics are not served: over"]
        await end(task)
        assert await closed(OTHER)

    asyncio.run(check())


async def until(condition: Callable[[], object]) -> None:
    async with limit(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_port_that_is_taken_at_the_start_ends_nothing() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            settings = replace(Settings(), health_enabled=True, health_port=taken.getsockname()[1])
            refused: dict[str, str] = {}
            serving = serve_latest(
                settings, asyncio.Queue(), lambda: (True, ""), lambda: (True, ""), nothing, dict, refused
            )
            task = asyncio.create_task(serving)
            async with asyncio.timeout(20):
                while not refused and not task.done():  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.01)
            assert not task.done() and "Address already in use" in refused["health is not served"]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())


def test_localhost_is_loopback_without_asking_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    original = socket.getaddrinfo

    def note(host: object, *rest: object, **named: object) -> object:
        asked.append(host)
        return original(host, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", note)

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = replace(Settings(), health_enabled=True, health_host="localhost", health_port=port)
        async with serve(settings, lambda: (True, ""), lambda: (True, ""), nothing):
            pass

    asyncio.run(scenario())
    assert asked and set(asked) <= {"127.0.0.1", "::1"}
