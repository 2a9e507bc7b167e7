"""What another back-end may have left and cannot be removed: said once, tried again ever later."""

from __future__ import annotations

import asyncio
import errno
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from felixpy.agent import leftovers
from felixpy.agent.leftovers import REMAIN
from felixpy.dataplane.iptables import detect, tools
from felixpy.dataplane.nftables.reading import TableReader
from felixpy.model.resources import FelixConfiguration, Kind, ResourceKey, Update
from felixpy.netlink import nftables
from felixpy.netlink.transport import NetlinkError
from tests.drift.world import sh
from tests.faults.node import Node


def find_nothing(monkeypatch: pytest.MonkeyPatch, variants: tuple[str, ...]) -> Callable[[], None]:
    """An image without some of the iptables programs. Returns what installs them."""
    real = tools.find_tool

    def without(name: str) -> str | None:
        return None if any(f"-{variant}-" in name for variant in variants) else real(name)

    for module in (tools, detect):
        monkeypatch.setattr(module, "find_tool", without)

    def install() -> None:
        for module in (tools, detect):
            monkeypatch.setattr(module, "find_tool", real)

    return install


async def live(node: Node, then: Callable[[], Awaitable[None]]) -> None:
    """Bring a node in sync, then do something."""
    node.put_endpoint(1)
    node.start()
    try:
        await node.settled()
        await then()
    finally:
        await node.stop()


async def looked(node: Node) -> None:
    """Until the search is over and has found nothing that stays."""
    await node.until(lambda: node.agent is not None and not node.agent.leftovers.due)


def told(log: list[Any]) -> list[str]:
    return [one.get("reason", "over") for one in log if one["event"].startswith(REMAIN)]


def test_what_cannot_be_removed_is_said_once_and_tried_again_ever_later(
    monkeypatch: pytest.MonkeyPatch, log: list[Any]
) -> None:
    """Legacy tables of somebody, and no program to look into them."""
    monkeypatch.setattr(leftovers, "FIRST_SECONDS", 0.02)
    install = find_nothing(monkeypatch, ("legacy",))
    tries: list[float] = []
    real = leftovers.remove_leftovers

    async def counted(*arguments: Any) -> list[str]:
        tries.append(time.monotonic())
        return await real(*arguments)

    monkeypatch.setattr(leftovers, "remove_leftovers", counted)
    node = Node("nftables")

    churned = [0.0]

    async def scenario() -> None:
        def churn() -> bool:
            if (
                time.monotonic() > churned[0] + 0.2
            ):  # a turn of the loop looks; without a rest the search would have none
                churned[0] = time.monotonic()
                node.put_endpoint(2)
                node.delete_endpoint(2)
            return len(tries) >= 6

        await node.until(churn)
        pauses = [after - before for before, after in itertools.pairwise(tries)]
        assert pauses[-1] > 8 * 0.02, pauses
        await node.until(lambda: told(log))
        (reason,) = told(log)
        assert [reason.count(f"iptables-{variant} IPv4") for variant in ("legacy", "nft")] == [1, 0]
        assert reason.count("was not found; install the package 'iptables'") == 2, "once for each family"
        install()

        def churn_on() -> bool:
            churn()
            return told(log)[-1] == "over"  # a search under way at the installation may have missed half of it

        await node.until(churn_on)

    asyncio.run(live(node, scenario))


def test_where_nothing_is_ours_the_programs_of_the_nft_variant_are_not_missed(
    monkeypatch: pytest.MonkeyPatch, log: list[Any]
) -> None:
    find_nothing(monkeypatch, ("nft",))

    node = Node("nftables")

    async def scenario() -> None:
        await looked(node)
        assert told(log) == []

    asyncio.run(live(node, scenario))


@pytest.mark.parametrize("words", nftables.NOT_IN_KERNEL, ids=errno.errorcode.get)
def test_a_kernel_without_nf_tables_holds_no_leftovers(
    monkeypatch: pytest.MonkeyPatch, log: list[Any], words: int
) -> None:
    def refuse(_: TableReader) -> bool:
        raise NetlinkError(words, "the kernel has no nf_tables")

    monkeypatch.setattr(TableReader, "table_flags", refuse)

    node = Node("legacy")

    async def scenario() -> None:
        await looked(node)
        assert told(log) == []

    asyncio.run(live(node, scenario))


def test_leftovers_of_a_back_end_that_was_changed_do_not_wait_for_others(
    monkeypatch: pytest.MonkeyPatch, log: list[Any]
) -> None:
    """A long pause after earlier failures is not that of the back-end that goes now."""
    find_nothing(monkeypatch, ("legacy",))
    monkeypatch.setattr(leftovers, "FIRST_SECONDS", 3600.0)
    node = Node("nftables")

    async def scenario() -> None:
        await node.until(lambda: len(told(log)) == 1)
        assert node.agent is not None
        sh("nft add table ip raw; nft add chain ip raw fpy-old")
        key = ResourceKey(Kind.FELIX_CONFIGURATION, "default")
        node.agent.update(Update(key, FelixConfiguration(key, {"maxIpsetSize": 4096})))
        await node.until(lambda: node.put_endpoint(2) or "fpy-old" not in sh("nft list tables; nft list ruleset"))

    asyncio.run(live(node, scenario))
