"""Nothing opens before rules stand, whatever fails; nothing that stands goes because something fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from felixpy.dataplane.backend import Backend
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.neighbours import NeighbourTable
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.dataplane.packet_filter import FilterChange, FilterError, FilterState, Part
from felixpy.demo.patience import Patience
from felixpy.model.net import FAMILIES, Family
from felixpy.model.resources import FelixConfiguration, Kind, ResourceKey, WorkloadEndpoint
from felixpy.sources import SyncState, SyncStatus
from tests.calc.samples import endpoint
from tests.dataplane.observed import InProcess, running, source_for
from tests.dataplane.test_unchanged import STREAM, cluster_node, programmed, workload
from tests.kernel import ip, pairs, run

__all__ = ["cluster_node"]

CONFIGURATION = ResourceKey(Kind.FELIX_CONFIGURATION, "default")
PROTOCOL = "222"
OURS = {
    Backend.NFTABLES: lambda family: run("nft", "list", "tables").count(f"{word(family)} felixpy"),
    Backend.LEGACY: lambda family: run(f"{tables(family)}-legacy-save").count("\n-A fpy-"),
    Backend.NFT_VARIANT: lambda family: run(f"{tables(family)}-nft-save").count("\n-A fpy-"),
}


def word(family: Family) -> str:
    return "ip" if family is Family.V4 else "ip6"


def tables(family: Family) -> str:
    return f"{word(family)}tables"


def rules(backend: Backend, family: Family) -> int:
    """How many rules of ours stand (nftables: chains)."""
    if backend is not Backend.NFTABLES or not OURS[backend](family):
        return OURS[backend](family)
    return run("nft", "list", "table", word(family), "felixpy").count("\tchain ")


def routes(family: Family) -> str:
    return run("ip", f"-{family.version}", "route", "show", "proto", PROTOCOL)


def forwarding(family: Family) -> int:
    path = "ipv4/conf/all/forwarding" if family is Family.V4 else "ipv6/conf/all/forwarding"
    return int(run("cat", f"/proc/sys/net/{path}"))


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    patience = Patience(seconds)
    while not condition():
        assert not patience.over()
        await asyncio.sleep(0.01)


def kind_of(backend: Backend) -> type[NftablesFilter] | type[IptablesFilter]:
    return NftablesFilter if backend is Backend.NFTABLES else IptablesFilter


def break_writes(monkeypatch: pytest.MonkeyPatch, backend: Backend, families: tuple[Family, ...]) -> list[bool]:
    """The packet filter of these families fails as a whole until the list is cleared."""
    kind, broken = kind_of(backend), [True]
    write = kind.write

    async def breaks(self: NftablesFilter | IptablesFilter, change: FilterChange) -> Mapping[object, str]:
        if broken and self.family in families:
            raise FilterError("the packet filter is broken")
        return await write(self, change)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "write", breaks)
    return broken


def configure(node: InProcess, **spec: object) -> None:
    node.put(FelixConfiguration(CONFIGURATION, spec))


@pytest.mark.parametrize("backend", Backend, ids=str)
def test_a_first_start_makes_rules_at_once_and_uses_what_has_arrived(cluster_node: None, backend: Backend) -> None:
    """A node that comes up without its broker is closed; with half of its stream, that half works."""

    async def scenario() -> None:
        async with running(source_for(backend)) as node:
            await until(lambda: all(rules(backend, family) and forwarding(family) for family in FAMILIES))
            assert routes(Family.V4) + routes(Family.V6) == ""
            node.put(*STREAM)
            node.agent.sync_status(SyncStatus(SyncState.DEGRADED, "snapshot incomplete: wep 12/14", 12, 14))
            await node.up("w0", "w11")
            assert not node.agent.is_ready()[0]
            assert all(routes(family).count("cali") == 12 for family in FAMILIES)
            node.in_sync()
            await node.idle()
            assert node.agent.is_ready()[0]

    asyncio.run(scenario())


@pytest.mark.parametrize("backend", Backend, ids=str)
def test_early_rules_go_with_a_family_that_the_stream_switches_off(cluster_node: None, backend: Backend) -> None:
    async def scenario() -> None:
        async with running(source_for(backend)) as node:
            await until(lambda: all(rules(backend, family) for family in FAMILIES))
            configure(node, ipv6Support=False)
            node.put(*STREAM)
            node.in_sync()
            await node.up("w0")
            await until(lambda: not rules(backend, Family.V6))
            assert rules(backend, Family.V4) and not routes(Family.V6)

    asyncio.run(scenario())


def test_a_restart_with_another_back_end_makes_no_rules_before_the_snapshot_is_complete(cluster_node: None) -> None:
    """Their sets would be empty, and stop the traffic that the old ones let through."""

    async def scenario() -> None:
        async with running(source_for(Backend.NFTABLES)) as node:
            await programmed(node)
        async with running(source_for(Backend.LEGACY)) as node:
            node.put(*STREAM)
            node.agent.sync_status(SyncStatus(SyncState.DEGRADED, "snapshot incomplete: wep 12/14", 12, 14))
            await until(lambda: len(node.agent.store.endpoints) == 13 and not node.agent.inbox)
            await asyncio.sleep(0.3)
            assert not any(rules(Backend.LEGACY, family) for family in FAMILIES)
            assert all(rules(Backend.NFTABLES, family) for family in FAMILIES)
            node.in_sync()
            await node.up("w0")
            assert all(rules(Backend.LEGACY, family) for family in FAMILIES)

    asyncio.run(scenario())


@pytest.mark.parametrize("backend", Backend, ids=str)
def test_nothing_opens_before_its_rules_while_the_snapshot_is_incomplete(
    cluster_node: None, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = break_writes(monkeypatch, backend, FAMILIES)

    async def scenario() -> None:
        async with running(source_for(backend)) as node:
            node.put(*STREAM)
            node.agent.sync_status(SyncStatus(SyncState.DEGRADED, "snapshot incomplete: wep 12/14", 12, 14))
            await until(lambda: len(node.agent.store.endpoints) == 13 and not node.agent.inbox)
            await asyncio.sleep(0.5)
            for family in FAMILIES:
                assert (routes(family), rules(backend, family), forwarding(family)) == ("", 0, 0), family
            broken.clear()
            await node.up("w0", "w11")
            assert all(routes(family).count("cali") == 12 and rules(backend, family) for family in FAMILIES)

    asyncio.run(scenario())


@pytest.mark.parametrize("backend", Backend, ids=str)
def test_a_family_whose_rules_cannot_be_written_stays_closed_and_the_other_opens(
    cluster_node: None, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = break_writes(monkeypatch, backend, (Family.V4,))

    async def scenario() -> None:
        async with running(source_for(backend)) as node:
            node.put(*STREAM)
            node.in_sync()
            await until(lambda: routes(Family.V6).count("cali") == 12 and forwarding(Family.V6))
            await until(lambda: (node.reported.get("w0") or {}).get("state") in ("error", "waiting"))
            assert (routes(Family.V4), rules(backend, Family.V4), forwarding(Family.V4)) == ("", 0, 0)
            broken.clear()
            await node.up("w0", "w11")
            await node.idle()
            assert routes(Family.V4).count("cali") == 12 and rules(backend, Family.V4) and forwarding(Family.V4)

    asyncio.run(scenario())


@pytest.mark.parametrize("setting", ["ipv6Support", "chainInsertMode", "maxIpsetSize"])
@pytest.mark.parametrize("backend", Backend, ids=str)
def test_rules_stand_although_a_reading_for_other_settings_fails(
    cluster_node: None, backend: Backend, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = kind_of(backend)
    read, failed = kind.read, []

    async def fails_once(self: NftablesFilter | IptablesFilter, part: Part = Part.ALL) -> FilterState:
        if not failed and self.family is Family.V4:
            failed.append(rules(backend, Family.V4))
            raise FilterError("rules cannot be read just now")
        return await read(self, part)

    async def scenario() -> None:
        async with running(source_for(backend)) as node:
            await programmed(node)
            before = rules(backend, Family.V4)
            assert before
            monkeypatch.setattr(kind, "read", fails_once)
            configure(node, **{setting: {"ipv6Support": False, "chainInsertMode": "append"}.get(setting, 4096)})
            await until(lambda: failed)
            while node.agent.configuration.due:  # a second until the next try, with applies in it
                assert rules(backend, Family.V4) == before
                await asyncio.sleep(0.02)
            await node.idle()
            assert rules(backend, Family.V4) == before

    asyncio.run(scenario())


@pytest.mark.parametrize("backend", [Backend.LEGACY, Backend.NFT_VARIANT], ids=str)
def test_an_endpoint_that_comes_up_while_an_apply_waits_for_a_tool_is_told(
    cluster_node: None, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = IptablesFilter._write_chains, []

    async def slow(self: IptablesFilter, chains: object) -> object:
        if not written:
            written.append(ip("link set cali0 up"))
        return await write(self, chains)  # type: ignore[arg-type]

    async def scenario() -> None:
        async with running(source_for(backend)) as node:
            await programmed(node)
            ip("link set cali0 down")
            node.put(workload(0))
            await until(lambda: (node.reported.get("w0") or {}).get("state") == "waiting")
            monkeypatch.setattr(IptablesFilter, "_write_chains", slow)
            configure(node, defaultEndpointToHostAction="Accept")
            await node.up("w0")
            assert written

    asyncio.run(scenario())


def test_a_refresh_interval_counts_from_the_moment_that_it_is_set(cluster_node: None) -> None:
    def every(interval: str) -> dict[str, str]:
        return {f"{part}RefreshInterval": interval for part in ("interface", "route", "nftables")}

    async def scenario() -> None:
        async with running(source_for(Backend.NFTABLES)) as node:
            configure(node, **every("0"))
            await programmed(node)
            compared = node.agent.dataplane.routing.routes.whole.times
            configure(node, **every("0.2s"))
            await until(lambda: node.agent.dataplane.routing.routes.whole.times > compared + 2)
            configure(node, **every("0"))
            await until(lambda: node.agent.configuration.resync_interval() is None)
            await node.idle()
            compared = node.agent.dataplane.routing.routes.whole.times
            await asyncio.sleep(0.5)
            assert node.agent.dataplane.routing.routes.whole.times == compared

    asyncio.run(scenario())


def test_settings_that_come_back_after_a_reading_failed_half_way_are_read_again(
    cluster_node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The routes were adopted with the other protocol number, so nobody would know of those that stand."""
    read, failed = NeighbourTable.read, []

    async def fails_once(self: NeighbourTable, socket: object) -> object:
        if not failed:
            failed.append(True)
            raise OSError(4, "the kernel's table kept changing while it was read")
        return await read(self, socket)  # type: ignore[arg-type]

    async def scenario() -> None:
        async with running(source_for(Backend.NFTABLES, RemoveExternalRoutes="false")) as node:
            await programmed(node)
            monkeypatch.setattr(NeighbourTable, "read", fails_once)
            node.drop(workload(1).key)
            configure(node, deviceRouteProtocol=230)
            await until(lambda: failed)
            node.drop(CONFIGURATION)
            await until(lambda: not node.agent.configuration.due)
            await node.idle()
            assert "10.65.0.3" not in routes(Family.V4)
            assert routes(Family.V4).count("cali") == 11

    asyncio.run(scenario())


def tap(number: int) -> WorkloadEndpoint:
    """A workload whose interface has another prefix."""
    return endpoint(f"t{number}", f"10.65.0.{number + 2}", f"fd00:65::{number + 2:x}", interface=f"tap{number}")


@pytest.mark.parametrize("backend", Backend, ids=str)
def test_interfaces_of_another_prefix_wait_for_the_rules_that_name_it(
    cluster_node: None, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = kind_of(backend)
    write, broken = kind.write, [True]

    async def no_rules(self: NftablesFilter | IptablesFilter, change: FilterChange) -> Mapping[object, str]:
        if not (broken and change.chains):
            return await write(self, change)  # type: ignore[arg-type]
        words: dict[object, str] = dict.fromkeys(change.chains, "rules cannot be written just now")
        return words | dict(await write(self, FilterChange(add=change.add, remove=change.remove)))

    async def scenario() -> None:
        pairs("tap20")
        async with running(source_for(backend)) as node:
            await programmed(node)
            monkeypatch.setattr(kind, "write", no_rules)
            configure(node, interfacePrefix="cali,tap")
            node.put(tap(20))
            await until(lambda: (node.reported.get("t20") or {}).get("state") == "waiting")
            assert "tap20" not in routes(Family.V4) + routes(Family.V6)
            assert routes(Family.V4).count("cali") == 12
            assert "rules of IPv4 are not in the kernel" in str((node.reported["t20"] or {})["reason"])
            broken.clear()
            await node.up("t20")
            assert "tap20" in routes(Family.V4) and "tap20" in routes(Family.V6)

    asyncio.run(scenario())


@pytest.mark.parametrize("backend", Backend, ids=str)
def test_a_restart_with_another_prefix_opens_it_only_when_the_snapshot_is_complete(
    cluster_node: None, backend: Backend
) -> None:
    async def scenario() -> None:
        pairs("tap20")
        async with running(source_for(backend)) as node:
            await programmed(node)
        async with running(source_for(backend, InterfacePrefix="cali,tap")) as node:
            node.put(*STREAM, tap(20))
            node.agent.sync_status(SyncStatus(SyncState.DEGRADED, "snapshot incomplete: wep 12/14", 12, 14))
            await until(lambda: node.agent.store.endpoints.get(tap(20).key) and not node.agent.inbox)
            await asyncio.sleep(0.3)
            assert "tap20" not in routes(Family.V4) + routes(Family.V6)
            assert routes(Family.V4).count("cali") == 12
            node.in_sync()
            await node.up("t20", "w0")
            assert "tap20" in routes(Family.V4) and "tap20" in routes(Family.V6)

    asyncio.run(scenario())


def test_a_table_that_another_program_keeps_from_us_keeps_its_family_closed(cluster_node: None) -> None:
    """iptables refuses a table that holds a native chain: without raw nobody would be checked."""
    run("nft", "add table ip raw; add chain ip raw PREROUTING { type filter hook prerouting priority -500; }")

    async def scenario() -> None:
        async with running(source_for(Backend.NFT_VARIANT)) as node:
            node.put(*STREAM)
            node.in_sync()
            await until(lambda: routes(Family.V6).count("cali") == 12 and forwarding(Family.V6))
            await until(lambda: (node.reported.get("w0") or {}).get("state") == "waiting")
            assert (routes(Family.V4), forwarding(Family.V4)) == ("", 0)
            run("nft", "delete", "table", "ip", "raw")
            await node.up("w0")
            assert routes(Family.V4).count("cali") == 12 and forwarding(Family.V4)

    asyncio.run(scenario())
