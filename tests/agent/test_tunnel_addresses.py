"""Addresses of a node's tunnels: when one is needed, out of what it is taken, that it is kept and released."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from felixpy.agent.cluster import node_patch
from felixpy.agent.tunnel_addresses import TunnelAddresses, tunnel_fields
from felixpy.calc.entry_settings import EntrySettings
from felixpy.calc.mtu import Tunnel
from felixpy.config import Settings
from felixpy.ipam.assignment import Wanted
from felixpy.ipam.blocks import CalicoBlocks, Surroundings
from felixpy.ipam.local import LocalAddresses
from felixpy.ipam.objects import BLOCKS
from felixpy.kubernetes.nodes import KubernetesNode, NodeMetadata
from felixpy.model.net import Family, Net, format_address, parse_address
from felixpy.model.parse import parse_resource
from felixpy.model.resources import IPPool, Kind, Node, ResourceKey, Update
from felixpy.store.store import Store
from tests.ipam.fake import FakeObjects

OWN = "n1"


def store_with(*objects: dict[str, Any]) -> Store:
    store = Store(OWN)
    for one in objects:
        put(store, one)
    return store


def put(store: Store, obj: dict[str, Any]) -> None:
    resource = parse_resource({"apiVersion": "projectcalico.org/v3", **obj})
    assert resource is not None
    store.apply(Update(resource.key, resource))  # type: ignore[arg-type]


def pool(cidr: str, name: str = "p", size: int | None = None, **spec: Any) -> dict[str, Any]:
    sizes = {"blockSize": size} if size else {}
    return {"kind": "IPPool", "metadata": {"name": name}, "spec": {"cidr": cidr, **sizes, **spec}}


def node(**labels: str) -> dict[str, Any]:
    return {"kind": "Node", "metadata": {"name": OWN, "labels": labels}, "spec": {}}


def affinity(cidr: str) -> dict[str, Any]:
    name = cidr.replace(".", "-").replace(":", "-").replace("/", "-")
    return {
        "kind": "BlockAffinity", "metadata": {"name": f"{OWN}-{name}"},
        "spec": {"node": OWN, "cidr": cidr, "state": "confirmed"},
    }  # fmt: skip


def local(store: Store, settings: Settings | None = None) -> tuple[TunnelAddresses, LocalAddresses]:
    def ranges(family: Family) -> list[Net]:
        return sorted(one.cidr for one in store.blocks.values() if one.cidr.family is family)

    addresses = LocalAddresses(ranges, "")
    return TunnelAddresses(store, lambda: EntrySettings.of(settings or Settings()), ranges, addresses), addresses


def texts(found: dict[Tunnel, bytes]) -> dict[str, str]:
    return {tunnel.value: format_address(packed) for tunnel, packed in found.items()}


VXLAN4 = pool("10.48.0.0/16", vxlanMode="Always")
VXLAN6 = pool("fd00:48::/48", "p6", vxlanMode="CrossSubnet")


def test_a_pod_cidr_gives_its_second_address_in_both_families() -> None:
    store = store_with(VXLAN4, VXLAN6, affinity("10.48.3.0/24"), affinity("fd00:48:0:3::/64"))
    tunnels, _ = local(store)
    found = asyncio.run(tunnels.find(None))
    assert texts(found) == {"vxlan.calico": "10.48.3.1", "vxlan-v6.calico": "fd00:48:0:3::1"}
    assert tunnel_fields({Tunnel.IPIP: bytes((10, 48, 3, 1)), **found})["bgp"] == {"ipv4IPIPTunnelAddr": "10.48.3.1"}


@pytest.mark.parametrize(
    ("pools", "needed"),
    [
        ([pool("10.48.0.0/16")], set()),
        ([pool("10.48.0.0/16", ipipMode="CrossSubnet")], {"tunl0"}),
        ([VXLAN4, pool("10.49.0.0/16", "q", ipipMode="Always")], {"vxlan.calico", "tunl0"}),
        ([pool("10.48.0.0/16", vxlanMode="Always", disabled=True)], {"vxlan.calico"}),
        ([pool("10.48.0.0/16", vxlanMode="Always", allowedUses=["Workload"])], set()),
        ([pool("10.48.0.0/16", vxlanMode="Always", nodeSelector="zone == 'a'")], {"vxlan.calico"}),
        ([pool("10.48.0.0/16", vxlanMode="Always", nodeSelector="zone == 'b'")], set()),
    ],
)
def test_what_needs_an_address(pools: list[dict[str, Any]], needed: set[str]) -> None:
    """A disabled pool, too: its workloads are still there."""
    store = store_with(node(zone="a"), *pools, affinity("10.48.3.0/24"), affinity("10.49.3.0/24"))
    assert set(texts(asyncio.run(local(store)[0].find(None)))) == needed


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        (Settings(wireguard_enabled=True), {"wireguard.cali": "10.48.3.1"}),
        (Settings(wireguard_enabled_v6=True), {"wg-v6.cali": "fd00:48:0:3::1"}),
        (Settings(wireguard_enabled=True, wireguard_host_encryption_enabled=True), {}),
    ],
)
def test_wireguard_needs_an_address_whatever_the_modes_of_pools(settings: Settings, needed: dict[str, str]) -> None:
    """With host encryption its device has the node's own."""
    pools = pool("10.48.0.0/16"), pool("fd00:48::/48", "p6")
    store = store_with(*pools, affinity("10.48.3.0/24"), affinity("fd00:48:0:3::/64"))
    found = asyncio.run(local(store, settings)[0].find(None))
    assert texts(found) == needed
    fields = {f"interfaceIPv{6 if ':' in text else 4}Address": text for text in needed.values()}
    assert tunnel_fields(found) == ({"wireguard": fields} if fields else {})


def test_a_small_block_is_shared_with_workloads_and_the_address_is_kept_and_released() -> None:
    async def scenario() -> None:
        store = store_with(VXLAN4, affinity("10.48.3.0/30"))
        tunnels, addresses = local(store)
        (first,) = await addresses.assign(Wanted("container", (Family.V4,)))
        packed = (await tunnels.find(None))[Tunnel.VXLAN]
        assert packed != first.packed and addresses.owner_of(packed) == "vxlan-tunnel-addr-n1"
        assert (await tunnels.find(None))[Tunnel.VXLAN] == packed, "asked again, it took another one"

        again, after_restart = local(store)
        told = Node(ResourceKey(Kind.NODE_STATE, OWN), vxlan_ipv4=packed)
        assert (await again.find(told))[Tunnel.VXLAN] == packed
        others = [await after_restart.assign(Wanted(f"c{number}", (Family.V4,))) for number in range(3)]
        assert packed not in {one.packed for (one,) in others}

        assert await again.find(told) == {Tunnel.VXLAN: packed}
        put(store, pool("10.48.0.0/16", vxlanMode="Never"))
        assert await again.find(told) == {}
        assert after_restart.owner_of(packed) is None

    asyncio.run(scenario())


def test_a_block_that_is_full_is_a_problem_and_no_failure() -> None:
    async def scenario() -> None:
        store = store_with(VXLAN4, affinity("10.48.3.0/32"))
        tunnels, addresses = local(store)
        await addresses.assign(Wanted("container", (Family.V4,)))
        assert await tunnels.find(None) == {}
        assert "no IPv4 address is free" in tunnels.problems[Tunnel.VXLAN]
        await addresses.release("container", (Net.parse("10.48.3.0/32"),))
        assert texts(await tunnels.find(None)) == {"vxlan.calico": "10.48.3.0"} and not tunnels.problems

    asyncio.run(scenario())


def test_nothing_is_taken_of_a_block_where_felixpy_gives_no_addresses() -> None:
    store = store_with(VXLAN4, affinity("10.48.3.0/30"))
    tunnels = TunnelAddresses(store, lambda: EntrySettings.of(Settings()), lambda family: [Net.parse("10.48.3.0/30")])
    assert asyncio.run(tunnels.find(None)) == {}


# --- Calico's blocks -----------------------------------------------------------------------------------------------


def test_calicos_blocks_hold_the_address_under_calicos_handle() -> None:
    async def scenario() -> None:
        store, server = store_with(pool("10.48.0.0/24", size=28, vxlanMode="Always")), FakeObjects()

        def pools() -> list[IPPool]:
            return list(store.pools.values())

        def known() -> list[tuple[Net, str | None]]:
            found = [spec for spec in list(server.specs(BLOCKS).values()) if not spec.get("deleted")]
            return [(Net.parse(spec["cidr"]), (spec["affinity"] or "").removeprefix("host:") or None) for spec in found]

        def started() -> tuple[TunnelAddresses, CalicoBlocks]:
            blocks = CalicoBlocks(server, Surroundings(OWN, pools, known))
            settings = EntrySettings.of(Settings())
            return TunnelAddresses(store, lambda: settings, lambda family: [], blocks=blocks), blocks

        tunnels, blocks = started()
        packed = (await tunnels.find(None))[Tunnel.VXLAN]
        (attribute,) = next(iter(server.specs(BLOCKS).values()))["attributes"]
        assert attribute["handle_id"] == "vxlan-tunnel-addr-n1"
        assert attribute["secondary"]["type"] == "vxlanTunnelAddress" and attribute["secondary"]["node"] == OWN
        assert await blocks.collect() == 0, "it counts as an address that no container has"

        tunnels, blocks = started()  # after a restart
        assert await blocks.collect() == 0
        assert (await tunnels.find(None))[Tunnel.VXLAN] == packed
        assert len((await blocks.by_handle())["vxlan-tunnel-addr-n1"]) == 1

        put(store, pool("10.48.0.0/24", size=28, vxlanMode="Always", disabled=True))
        assert (await tunnels.find(None))[Tunnel.VXLAN] == packed, "a disabled pool still counts"
        put(store, pool("10.48.0.0/24", size=28))
        assert await tunnels.find(None) == {}
        assert "vxlan-tunnel-addr-n1" not in await blocks.by_handle()

    asyncio.run(scenario())


def test_annotations_of_kubernetes_follow() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    bare = KubernetesNode(NodeMetadata("n1"))

    def annotations(of: KubernetesNode, tunnels: dict[Tunnel, bytes] | None) -> Any:
        return node_patch(of, [], now, {}, tunnels).get("metadata", {}).get("annotations", {})

    given = {Tunnel.VXLAN: parse_address("10.48.3.1"), Tunnel.VXLAN_V6: parse_address("fd00:48:0:3::1")}
    written = {
        "projectcalico.org/IPv4VXLANTunnelAddr": "10.48.3.1",
        "projectcalico.org/IPv6VXLANTunnelAddr": "fd00:48:0:3::1",
    }
    assert annotations(bare, given) == written
    encrypting = {Tunnel.WIREGUARD: parse_address("10.48.3.1"), Tunnel.WIREGUARD_V6: parse_address("fd00:48:0:3::1")}
    assert annotations(bare, encrypting) == {
        "projectcalico.org/IPv4WireguardInterfaceAddr": "10.48.3.1",
        "projectcalico.org/IPv6WireguardInterfaceAddr": "fd00:48:0:3::1",
    }
    has = KubernetesNode(
        NodeMetadata("n1", annotations={**written, "projectcalico.org/IPv4IPIPTunnelAddr": "10.1.1.1"})
    )
    assert annotations(has, given) == {"projectcalico.org/IPv4IPIPTunnelAddr": None}
    assert annotations(has, {}) == dict.fromkeys((*written, "projectcalico.org/IPv4IPIPTunnelAddr"))
    assert annotations(has, None) == {}, "others give the addresses here"
    chosen = {Family.V4: None, Family.V6: Net.parse_interface("fd09::1/64")}
    patch = node_patch(bare, [Net.parse_interface("192.0.2.1/24")], now, chosen)
    assert patch["metadata"]["annotations"] == {"projectcalico.org/IPv6Address": "fd09::1/64"}
