"""IPAMHandles: written beside the answer, gone before whoever had the addresses is forgotten, whatever goes wrong."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.ipam import handles
from felixpy.ipam.assignment import NoAddress
from felixpy.ipam.handles import Handles, handle_name, lessen
from felixpy.ipam.objects import HANDLES
from felixpy.model.net import Net
from tests.ipam.fake import FakeObjects
from tests.ipam.test_blocks import Cluster, run, wanted

FOUR, SIX = Net.parse("10.48.0.0/26"), Net.parse("fd00:48::/122")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "RETRY_FIRST_SECONDS", 0.001)


def said(server: FakeObjects) -> dict[str, object]:
    return {name: dict(spec) for name, spec in server.specs(HANDLES).items()}


def test_a_new_handle_is_one_request_and_its_end_two() -> None:
    async def scenario() -> None:
        server = FakeObjects()
        index = Handles(server)
        index.write("Net.A.eth0", {FOUR: 1, SIX: 2}, new=True)
        await index.settled()
        assert said(server) == {
            "net.a.eth0": {"handleID": "Net.A.eth0", "block": {str(FOUR): 1, str(SIX): 2}, "deleted": False}
        }
        assert (server.writes, server.reads) == (["create IPAMHandle net.a.eth0"], 0)
        await index.drop("Net.A.eth0")
        assert (said(server), server.reads) == ({}, 1)
        await index.drop("Net.A.eth0")

    run(scenario)


def test_what_cannot_be_written_is_written_later() -> None:
    async def scenario() -> None:
        server = FakeObjects()
        troubles = iter(("before", "after", "before"))
        server.trouble = lambda what: next(troubles, "")
        index = Handles(server)
        index.write("a", {FOUR: 1}, new=True)
        await index.settled()
        assert [spec["block"] for spec in server.specs(HANDLES).values()] == [{str(FOUR): 1}]

    run(scenario)


def test_a_handle_that_is_being_written_is_dropped_all_the_same() -> None:
    async def scenario() -> None:
        server = FakeObjects()
        index = Handles(server)
        index.write("a", {FOUR: 1}, new=True)
        await asyncio.sleep(0)
        await index.drop("a")
        await index.settled()
        assert said(server) == {}

    run(scenario)


def test_a_handle_that_somebody_began_to_delete() -> None:
    async def scenario() -> None:
        server = FakeObjects()
        server.put(HANDLES, "a", {"handleID": "a", "block": {}, "deleted": True})
        index = Handles(server)
        index.write("a", {FOUR: 1})
        await index.settled()
        assert said(server) == {"a": {"handleID": "a", "block": {str(FOUR): 1}, "deleted": False}}

    run(scenario)


def test_two_take_out_of_one_handle_at_once() -> None:
    async def scenario() -> None:
        server = FakeObjects()
        server.put(HANDLES, "a", {"handleID": "a", "block": {str(FOUR): 2, str(SIX): 1}})
        await asyncio.gather(lessen(server, "a", {FOUR: 1}), lessen(server, "a", {FOUR: 1}))
        assert [spec["block"] for spec in server.specs(HANDLES).values()] == [{str(SIX): 1}]
        assert server.conflicts
        await lessen(server, "a", {SIX: 1})
        await lessen(server, "a", {SIX: 1})
        assert said(server) == {}

    run(scenario)


def test_the_next_run_writes_what_a_crash_left_out() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        first = cluster.agent("n1")
        found = await first.assign(wanted("a"))
        await first.settled()
        cluster.server.held = {key: one for key, one in cluster.server.held.items() if key[0] != HANDLES.plural}
        second = cluster.agent("n1")
        second.adopt("a", found)
        assert await second.collect() == 0
        await second.settled()
        assert cluster.handles() == cluster.handles_of_blocks()
        reads = cluster.server.reads
        second.adopt("a", found)
        await second.collect()
        assert cluster.server.reads == reads + 2, "each block once, no handle again"

    run(scenario)


def test_the_next_run_takes_away_what_a_crash_left() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        first = cluster.agent("n1")
        await first.assign(wanted("a"))
        await first.settled()
        second = cluster.agent("n1")
        assert await second.collect() == 2
        assert (cluster.handles(), cluster.owners()) == ({}, {})

    run(scenario)


def test_a_release_whose_handle_cannot_go_is_not_over() -> None:
    """Whoever attached it keeps it in the journal until both are gone."""

    async def scenario() -> None:
        cluster = Cluster()
        agent = cluster.agent("n1")
        found = await agent.assign(wanted("a"))
        await agent.settled()
        cluster.server.trouble = lambda what: "before" if "IPAMHandle" in what else ""
        with pytest.raises(NoAddress) as error:
            await agent.release("a", found)
        assert error.value.later
        assert (cluster.owners(), len(cluster.handles())) == ({}, 1)
        cluster.server.trouble = lambda what: ""
        await agent.release("a", found)
        assert cluster.handles() == {}

    run(scenario)


def test_names() -> None:
    assert handle_name("k8s-pod-network.0A1b.eth0") == "k8s-pod-network.0a1b.eth0"
    odd = handle_name("my_network.0a1b.eth0")
    assert odd != handle_name("my_network.0a1c.eth0")
    assert odd.startswith("handle-")
