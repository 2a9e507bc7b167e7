"""The broker dies, comes back with all, nothing or old data, stays mute, or gives our session to another client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.mqtt_wire import kick
from tests.reliability.stream_world import (
    ANONYMOUS,
    NODE,
    ROOT,
    World,
    endpoints,
    kernel,
    kernel_pairs,
    kernel_pools,
    pairs,
    pool,
    scenario,
    until,
)

pytestmark = pytest.mark.usefixtures("network")

POOL = {"ippool/pool": pool()}
SHORT_WAIT = (
    "-c",
    "import felixpy.sources.mqtt as m, felixpy.commands.main as c; m.TAKEN_OVER_SECONDS = (1.5, 2.0); c.main()",
    "run",
)
"""The agent, but with a shorter pause than 15 to 45 s after another client took its session."""

FIXED_ID = "an-id-that-is-known"


def persistent(folder: Path) -> tuple[str, ...]:
    """Mosquitto that keeps retained messages in a file, written when told or when it is ended in order."""
    return ("allow_anonymous true", "persistence true", f"persistence_location {folder}/", "autosave_interval 0")


@scenario
async def test_broker_killed_and_restarted_with_its_data_changes_nothing(tmp_path: Path) -> None:
    async with World.made(tmp_path, persistent(tmp_path)) as world:
        await world.put_all({**POOL, **endpoints(range(1, 11))})
        await asyncio.to_thread(world.broker.restart)  # writes the file
        world.start_agent()
        await world.says("in-sync")
        monitor, before = await world.monitor(), kernel()
        world.forget()
        await asyncio.to_thread(world.broker.kill)
        await until(lambda: world.events("stream lost"))
        assert kernel() == before
        await asyncio.to_thread(world.broker.start)
        await world.says("in-sync")
        assert kernel() == before
        assert await monitor.lines() == []
        assert "offline" not in world.states()[-1]
        await world.put(endpoints([11]))
        await world.kernel_becomes(range(1, 12))


@scenario
async def test_broker_restarted_empty_deletes_nothing_until_all_is_published_again(tmp_path: Path) -> None:
    objects = {**POOL, **endpoints(range(1, 11))}
    async with World.made(tmp_path) as world:
        await world.felixpy("apply", objects)
        world.start_agent()
        await world.says("in-sync")
        monitor = await world.monitor()
        await asyncio.to_thread(world.broker.restart)
        await world.says("degraded", "no longer holds the manifest sync/shared", f"sync/node/{NODE}")
        assert kernel_pairs() == pairs(range(1, 11))
        await world.felixpy("apply", {**POOL, **endpoints(range(1, 9))})
        await world.says("in-sync")
        await world.kernel_becomes(range(1, 9))
        assert set(await monitor.pairs("delete")) == pairs([9, 10])
        # Whoever fills an empty broker begins with a manifest of nothing: that is not to be taken for the whole.
        assert await monitor.pairs("add") == []


@scenario
async def test_broker_that_went_back_to_old_data_loses_no_endpoint_until_that_is_confirmed(tmp_path: Path) -> None:
    async with World.made(tmp_path, persistent(tmp_path)) as world:
        await world.felixpy("apply", {**POOL, **endpoints(range(1, 6))})
        await asyncio.to_thread(world.broker.restart)  # writes the file, for the last time
        await world.felixpy("apply", endpoints(range(6, 9)))
        await world.felixpy("delete", endpoints([1]))
        world.start_agent()
        await world.says("in-sync")
        assert kernel_pairs() == pairs(range(2, 9))
        monitor = await world.monitor()
        await asyncio.to_thread(world.broker.kill)
        await asyncio.to_thread(world.broker.start)
        await world.says("degraded", "went back to an older state", "without 3 objects that are kept")
        await world.kernel_becomes(range(1, 9))  # what the old state has beyond ours is in the stream, so it counts
        await world.felixpy("apply", endpoints([6]))
        await world.says("degraded", "without 2 objects")
        assert await monitor.pairs("delete") == []
        await world.felixpy("apply", endpoints([2]), recount=True)
        await world.says("in-sync")
        await world.kernel_becomes(range(1, 7))
        assert set(await monitor.pairs("delete")) == pairs([7, 8])


@scenario
async def test_broker_with_old_data_is_in_sync_when_all_of_it_is_published_again(tmp_path: Path) -> None:
    async with World.made(tmp_path, persistent(tmp_path)) as world:
        await world.felixpy("apply", {**POOL, **endpoints(range(1, 4))})
        await asyncio.to_thread(world.broker.restart)
        await world.felixpy("apply", endpoints(range(4, 6)))
        world.start_agent()
        await world.says("in-sync")
        monitor = await world.monitor()
        await asyncio.to_thread(world.broker.kill)
        await asyncio.to_thread(world.broker.start)
        await world.says("degraded", "went back to an older state")
        await world.felixpy("apply", endpoints(range(4, 6)))
        await world.says("in-sync")
        assert await monitor.lines() == []


@scenario
async def test_deleted_while_the_agent_is_away_is_removed_once_in_sync_and_nothing_else_is_written(
    tmp_path: Path,
) -> None:
    async with World.made(tmp_path) as world:
        await world.felixpy("apply", {**POOL, **endpoints(range(1, 31))})
        world.start_agent()
        await world.says("in-sync")
        await until(lambda: len(world.of_endpoints) == 30)
        world.kill_agent()
        await world.says_offline()
        await world.felixpy("delete", endpoints(range(1, 11)))
        await world.felixpy("apply", {"ippool/pool": pool("10.0.0.0/9")})
        assert kernel_pairs() == pairs(range(1, 31))
        monitor = await world.monitor()
        world.forget()
        world.start_agent()
        await world.says("in-sync")
        await world.kernel_becomes(range(11, 31))
        deleted, added = await monitor.pairs("delete"), await monitor.pairs("add")
        assert set(deleted) == pairs(range(1, 11)) and len(deleted) == len(set(deleted))
        assert added == []
        assert "10.0.0.0/9" in kernel_pools()
        assert {line.split()[4] for line in await monitor.lines()} == {
            "from-workload", "to-workload", "pools", "masq-pools",
        }  # fmt: skip
        # What a dead agent had said of the endpoints that went meanwhile is taken back.
        left = {topic.removeprefix(f"wep/{NODE}/") for topic in endpoints(range(11, 31))}
        await until(lambda: set(world.of_endpoints) == left, why=lambda: world.of_endpoints.keys() ^ left)


@scenario
async def test_agent_started_without_a_broker_adopts_says_so_and_deletes_nothing(tmp_path: Path) -> None:
    async with World.made(tmp_path, persistent(tmp_path)) as world:
        await world.put_all({**POOL, **endpoints(range(1, 11))})
        world.start_agent()
        await world.says("in-sync")
        world.kill_agent()
        await asyncio.to_thread(world.broker.stop)
        before, monitor = kernel(), await world.monitor()
        world.forget()
        (world.folder / "agent.log").unlink()
        world.start_agent()
        await until(lambda: world.events("stream lost"))
        assert "refuses connections" in world.events("stream lost")[0]["reason"]
        await until(lambda: world.events("adopted"))
        (adopted,) = world.events("adopted")
        assert (adopted["ipv4-sets"], adopted["ipv6-sets"]) == (22, 20)  # v4: two members of pool sets, too
        # The broker comes back without its file, so the snapshot cannot be complete.
        (tmp_path / "mosquitto.db").unlink()
        await asyncio.to_thread(world.broker.start)
        await world.says("degraded", "no objects and no manifest", "entries that the kernel had at the start stay")
        assert "in-sync" not in world.states()
        assert kernel() == before
        assert await monitor.lines() == []
        await world.put_all({**POOL, **endpoints(range(2, 11))})
        await world.says("in-sync")
        await world.kernel_becomes(range(2, 11))
        assert set(await monitor.pairs("delete")) == pairs([1])


@scenario
async def test_second_client_with_our_id_makes_the_agent_back_off_say_so_and_recover(tmp_path: Path) -> None:
    async with World.made(tmp_path) as world:
        await world.put_all({**POOL, **endpoints(range(1, 6))})
        world.start_agent(*SHORT_WAIT, FELIX_MQTTCLIENTID=FIXED_ID)
        await world.says("in-sync")
        monitor = await world.monitor()

        def understood() -> bool:
            return any(f"another client with the client id {FIXED_ID}" in line["reason"] for line in lost())

        def lost() -> list[dict[str, Any]]:
            return world.events("stream lost")

        while not understood():  # on a busy machine some last for so long that they were not thrown out soon
            before = len(world.events("stream connected"))
            await asyncio.to_thread(kick, world.broker.port, FIXED_ID)
            await until(lambda before=before: understood() or len(world.events("stream connected")) > before)
        last = lost()[-1]
        assert len(lost()) == 2 + len(world.events("stream lost: over"))  # when it begins, and when it is understood
        assert last["retry_seconds"] >= 1.5
        await world.put_all({**POOL, **endpoints(range(1, 7))}, rev=2)
        assert kernel_pairs() == pairs(range(1, 6))
        world.forget()
        await world.says("in-sync")
        await world.kernel_becomes(range(1, 7))
        assert await monitor.pairs("delete") == []


FOLLOW_AT_ONCE = (
    "-c",
    "import felixpy.mqtt.credentials as m, felixpy.commands.main as c; "
    "m.LOOK_SECONDS, m.SPREAD_SECONDS = 600, (0, 0.1); c.main()",
    "run",
)
"""The agent, but it looks at the files of its credentials only when told, and does not wait for others."""


@scenario
async def test_a_new_password_file_is_taken_at_sighup_without_a_write(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("old")
    async with World.made(tmp_path) as world:
        await world.put_all({**POOL, **endpoints(range(1, 6))})
        world.start_agent(*FOLLOW_AT_ONCE, FELIX_MQTTUSERNAME=NODE, FELIX_MQTTPASSWORDFILE=str(secret))
        await world.says("in-sync")
        monitor, before = await world.monitor(), kernel()
        secret.write_text("new")
        world.reload_agent()
        await until(lambda: len(world.events("stream connected")) == 2)
        await until(lambda: [event["state"] for event in world.events("stream")][-2:] == ["resync", "in-sync"])
        assert "offline" not in world.states()
        assert world.events("stream lost") == []
        assert kernel() == before
        assert await monitor.lines() == []


@scenario
async def test_restarted_with_the_user_of_another_node_it_takes_nothing_from_the_kernel(tmp_path: Path) -> None:
    rules = Path(__file__).parents[2] / "config" / "mosquitto.acl"
    (tmp_path / "acl").write_text(f"topic readwrite {ROOT}/#\n{rules.read_text()}")  # the test itself has no user
    async with World.made(tmp_path, (*ANONYMOUS, f"acl_file {tmp_path}/acl")) as world:
        await world.put({**POOL, **endpoints(range(1, 6))})  # no manifest that could be missed
        world.start_agent(FELIX_MQTTUSERNAME=NODE)
        await world.says("in-sync")
        world.kill_agent()
        monitor, before = await world.monitor(), kernel()
        world.start_agent(FELIX_MQTTUSERNAME="n2")
        await until(lambda: world.events("stream")[-1]["state"] == "degraded")
        assert "refuses user 'n2'" in world.events("stream")[-1]["reason"]
        assert kernel() == before
        assert await monitor.lines() == []
        world.kill_agent()
        world.start_agent(FELIX_MQTTUSERNAME=NODE)
        await world.says("in-sync")
        assert await monitor.lines() == []


@contextlib.contextmanager
def mute_broker(port: int) -> Iterator[threading.Event]:
    """Accepts connections and never says a word; the event tells that somebody came."""
    came, connections = threading.Event(), []
    with socket.create_server(("127.0.0.1", port)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.append(server.accept()[0])
                    came.set()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield came
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


@scenario
async def test_broker_that_accepts_and_stays_mute_is_given_up_and_the_next_one_is_used(tmp_path: Path) -> None:
    async with World.made(tmp_path, persistent(tmp_path)) as world:
        await world.put_all({**POOL, **endpoints(range(1, 6))})
        world.start_agent()
        await world.says("in-sync")
        world.kill_agent()
        await asyncio.to_thread(world.broker.stop)
        before = kernel()
        world.forget()
        with mute_broker(world.broker.port) as came:
            world.start_agent()
            await asyncio.to_thread(came.wait, 20)
            await until(lambda: any("does not answer" in one["reason"] for one in world.events("stream lost")), 30)
            assert kernel() == before
        await asyncio.to_thread(world.broker.start)
        await world.says("in-sync")
        assert kernel() == before


@scenario
async def test_broker_that_falls_silent_is_noticed_by_keep_alive(tmp_path: Path) -> None:
    async with World.made(tmp_path) as world:
        await world.put_all({**POOL, **endpoints(range(1, 6))})
        world.start_agent(FELIX_MQTTKEEPALIVE="1")
        await world.says("in-sync")
        before = kernel()
        world.broker.freeze()
        try:
            await until(lambda: world.events("stream lost"))
            assert kernel() == before
        finally:
            world.broker.thaw()
        world.forget()
        await world.says("in-sync")
        assert kernel() == before
