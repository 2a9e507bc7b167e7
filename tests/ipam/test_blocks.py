"""Blocks in a store that compares and swaps: one agent, two agents, conflicts, and answers that get lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felixpy.demo.patience import limit
from felixpy.ipam.affinity import affinity_name, release_block
from felixpy.ipam.assignment import NoAddress, Wanted
from felixpy.ipam.block import Attribute, assign_address, block_spec, new_block, read_block
from felixpy.ipam.blocks import CalicoBlocks, Surroundings
from felixpy.ipam.freeing import free_address, free_node
from felixpy.ipam.objects import AFFINITIES, BLOCKS, CONFIGURATION, HANDLES, RESERVATIONS, affinity_labels
from felixpy.model.names import cidr_name
from felixpy.model.net import Family, Net
from felixpy.model.resources import IPPool, Kind, ResourceKey
from felixpy.model.selectors import parse_selector
from tests.ipam.fake import FakeObjects
from tests.kernel import Clock

V4 = (Family.V4,)
BOTH = (Family.V4, Family.V6)


def pool(name: str, cidr: str, size: int, **fields: Any) -> IPPool:
    return IPPool(ResourceKey(Kind.IP_POOL, name), Net.parse(cidr), size, **fields)


POOLS = [pool("four", "10.48.0.0/27", 30), pool("six", "fd00:48::/123", 126)]
"""Eight blocks of four addresses each."""


class Cluster:
    """A server, its pools, and agents; what a watch tells is there at once."""

    def __init__(self, *pools: IPPool) -> None:
        self.server = FakeObjects()
        self.pools = list(pools or POOLS)
        self.clock = Clock()

    def agent(self, node: str, **labels: str) -> CalicoBlocks:
        return CalicoBlocks(
            self.server, Surroundings(node, lambda: self.pools, self.blocks, lambda: labels), self.clock
        )

    def blocks(self) -> list[tuple[Net, str | None]]:
        read = [read_block(spec) for spec in self.server.specs(BLOCKS).values()]
        return [(block.cidr, block.affinity) for block in read]

    def owners(self) -> dict[bytes, str | None]:
        """Address → handle, over all blocks."""
        found: dict[bytes, str | None] = {}
        for spec in self.server.specs(BLOCKS).values():
            for handle, addresses in read_block(spec).by_handle().items():
                found |= dict.fromkeys(addresses, handle)
        return found

    def handles(self) -> dict[str, dict[str, int]]:
        """Handle → addresses by block, as IPAMHandles say."""
        return {spec["handleID"]: dict(spec["block"]) for spec in self.server.specs(HANDLES).values()}

    def handles_of_blocks(self) -> dict[str, dict[str, int]]:
        """The same, as blocks say."""
        found: dict[str, dict[str, int]] = {}
        for spec in self.server.specs(BLOCKS).values():
            for handle, addresses in read_block(spec).by_handle().items():
                found.setdefault(str(handle), {})[spec["cidr"]] = len(addresses)
        return found

    def block_writes(self) -> list[str]:
        return [what for what in self.server.writes if " IPAMBlock " in what]

    def configure(self, **spec: Any) -> None:
        self.server.put(CONFIGURATION, "default", spec)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with limit(60):
            await scenario()

    asyncio.run(bounded())


def wanted(handle: str, families: tuple[Family, ...] = BOTH, **fields: Any) -> Wanted:
    return Wanted(handle, families, attributes={"node": "n1", "pod": handle}, **fields)


def test_the_first_address_of_a_node_and_the_next() -> None:
    """Affinity pending, block, affinity confirmed, allocation; then one write an address and family."""

    async def scenario() -> None:
        cluster = Cluster()
        agent = cluster.agent("n1")
        (first,) = await agent.assign(wanted("a", V4))
        (cidr,) = [cidr for cidr, _ in cluster.blocks()]
        name = cidr_name(cidr)
        await agent.settled()
        assert cluster.server.writes == [
            f"create BlockAffinity n1-{name}",
            f"create IPAMBlock {name}",
            f"replace BlockAffinity n1-{name}",
            f"replace IPAMBlock {name}",
            "create IPAMHandle a",
        ]
        assert cluster.server.specs(AFFINITIES)[f"n1-{name}"]["state"] == "confirmed"
        assert cidr.covers(first)
        cluster.server.writes.clear()
        reads = cluster.server.reads
        (second,) = await agent.assign(wanted("b", V4))
        assert cluster.server.writes == [f"replace IPAMBlock {name}"]
        assert cluster.server.reads == reads
        await agent.settled()
        assert cluster.server.writes[1:] == ["create IPAMHandle b"]
        assert cluster.owners() == {first.packed: "a", second.packed: "b"}
        await agent.release("a", (first,))
        await agent.release("a", (first,))
        assert cluster.owners() == {second.packed: "b"}

    run(scenario)


def test_a_burst_shares_its_writes() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/24", 26), pool("six", "fd00:48::/120", 122))
        agent = cluster.agent("n1")
        await agent.assign(wanted("first"))
        await agent.settled()
        cluster.server.writes.clear()
        found = await asyncio.gather(*(agent.assign(wanted(f"h{number}")) for number in range(10)))
        assert len({address for some in found for address in some}) == 20
        assert len(cluster.block_writes()) <= 4, cluster.server.writes
        await agent.settled()
        cluster.server.writes.clear()
        await asyncio.gather(*(agent.release(f"h{number}", some) for number, some in enumerate(found)))
        assert len(cluster.block_writes()) <= 6
        assert set(cluster.owners().values()) == {"first"}

    run(scenario)


def test_two_nodes_want_one_block() -> None:
    """One gets it; the other takes its affinity back and tries the next. Nobody has two owners."""

    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/29", 30))
        agents = [cluster.agent(node) for node in ("n1", "n2")]
        await asyncio.gather(*(agent.assign(wanted(f"h{index}", V4)) for index, agent in enumerate(agents)))
        blocks = dict(cluster.blocks())
        assert sorted(filter(None, blocks.values())) == ["n1", "n2"]
        affinities = cluster.server.specs(AFFINITIES)
        assert {(spec["node"], spec["state"]) for spec in affinities.values()} == {
            ("n1", "confirmed"), ("n2", "confirmed"),
        }  # fmt: skip
        assert len(affinities) == 2

    run(scenario)


def test_both_pending_for_the_same_block() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/30", 30))
        cluster.configure(strictAffinity=True)
        cidr = Net.parse("10.48.0.0/30")
        for node in ("n1", "n2"):
            spec = {"cidr": str(cidr), "node": node, "state": "pending", "type": "host", "deleted": False}
            cluster.server.put(AFFINITIES, affinity_name(node, cidr), spec)
        agents = [cluster.agent(node) for node in ("n1", "n2")]
        found = await asyncio.gather(
            *(agent.assign(wanted(f"h{index}", V4)) for index, agent in enumerate(agents)), return_exceptions=True
        )
        assert sorted(isinstance(one, NoAddress) for one in found) == [False, True]
        (spec,) = cluster.server.specs(AFFINITIES).values()
        assert spec["state"] == "confirmed"
        assert cluster.blocks() == [(cidr, spec["node"])]

    run(scenario)


def test_borrowing_unless_affinity_is_strict() -> None:
    async def scenario() -> None:
        for strict in (False, True):
            cluster = Cluster(pool("four", "10.48.0.0/30", 30))
            cluster.configure(strictAffinity=strict)
            one, two = cluster.agent("n1"), cluster.agent("n2")
            await one.assign(wanted("a", V4))
            if strict:
                with pytest.raises(NoAddress, match="no IPv4 address is free for this node in four"):
                    await two.assign(wanted("b", V4))
            else:
                await two.assign(wanted("b", V4))
                assert sorted(map(str, cluster.owners().values())) == ["a", "b"]
            assert len(cluster.server.specs(AFFINITIES)) == 1, "who lost leaves no affinity"

    run(scenario)


def test_limits_of_blocks() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.configure(strictAffinity=True, maxBlocksPerHost=2)
        agent = cluster.agent("n1")
        for number in range(8):
            await agent.assign(wanted(f"h{number}", V4))
        with pytest.raises(NoAddress, match="maxBlocksPerHost=2"):
            await agent.assign(wanted("more", V4))
        manual = Cluster()
        manual.configure(autoAllocateBlocks=False)
        with pytest.raises(NoAddress, match="autoAllocateBlocks=false"):
            await manual.agent("n1").assign(wanted("a", V4))
        assert manual.server.writes == []

    run(scenario)


def test_reservations_are_never_given() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/29", 29))
        cluster.server.put(RESERVATIONS, "some", {"reservedCIDRs": ["10.48.0.0/30", "10.48.0.5"]})
        agent = cluster.agent("n1")
        found = [(await agent.assign(wanted(f"h{number}", V4)))[0] for number in range(3)]
        assert [str(address) for address in found] == ["10.48.0.4/32", "10.48.0.6/32", "10.48.0.7/32"]
        with pytest.raises(NoAddress):
            await agent.assign(wanted("more", V4))

    run(scenario)


def test_cooldown() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/32", 32))
        cluster.configure(ipCooldownSeconds=30)
        agent = cluster.agent("n1")
        found = await agent.assign(wanted("a", V4))
        await agent.release("a", found)
        with pytest.raises(NoAddress):
            await agent.assign(wanted("b", V4))
        cluster.clock.now += 31
        assert await agent.assign(wanted("b", V4)) == found

    run(scenario)


def test_pools_by_request_and_by_selector() -> None:
    async def scenario() -> None:
        cluster = Cluster(
            pool("plain", "10.48.0.0/29", 30),
            pool("rack", "10.49.0.0/29", 30, node_selector=parse_selector("rack == 'a'")),
            pool("team", "10.50.0.0/29", 30, namespace_selector=parse_selector("team == 'x'"), manual=False),
        )

        async def network(agent: CalicoBlocks, handle: str, **fields: Any) -> str:
            (address,) = await agent.assign(wanted(handle, V4, **fields))
            return str(address.widened(16))

        agent = cluster.agent("n1", rack="b")
        assert await network(agent, "a") == "10.48.0.0/16"
        assert await network(agent, "b", pools={Family.V4: ("rack",)}) == "10.49.0.0/16"
        assert await network(agent, "c", pools={Family.V4: ("10.50.0.0/29",)}) == "10.50.0.0/16"
        with pytest.raises(NoAddress, match="nowhere"):
            await network(agent, "d", pools={Family.V4: ("nowhere",)})
        cluster.pools = cluster.pools[1:]
        with pytest.raises(NoAddress, match="no IPv4 pool gives addresses"):
            await network(agent, "e")
        assert await network(agent, "f", namespace_labels={"team": "x"}) == "10.50.0.0/16"

    run(scenario)


def test_an_address_that_is_asked_for() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        one, two = cluster.agent("n1"), cluster.agent("n2")
        asked = Net.parse("10.48.0.17")
        assert await one.assign(wanted("a", V4, requested=(asked,))) == (asked,)
        with pytest.raises(NoAddress, match=r"10.48.0.17 is in use by a"):
            await two.assign(wanted("b", V4, requested=(asked,)))
        with pytest.raises(NoAddress, match="is in no pool"):
            await two.assign(wanted("b", V4, requested=(Net.parse("192.0.2.1"),)))
        await one.release("a", (asked,))
        assert await two.assign(wanted("b", V4, requested=(asked,))) == (asked,)

    run(scenario)


def test_both_families_or_none() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/32", 32), POOLS[1])
        agent = cluster.agent("n1")
        await agent.assign(wanted("first"))
        before = cluster.owners()
        with pytest.raises(NoAddress, match="no IPv4 address is free"):
            await agent.assign(wanted("second"))
        await agent.settled()
        assert cluster.owners() == before

    run(scenario)


def test_a_late_release_frees_nothing_of_the_next_owner() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/32", 32))
        agent = cluster.agent("n1")
        found = await agent.assign(wanted("a", V4))
        await agent.release("a", found)
        await agent.assign(wanted("b", V4))
        await agent.release("a", found)
        assert list(cluster.owners().values()) == ["b"]

    run(scenario)


def test_what_a_crash_left_is_collected_and_nothing_else() -> None:
    """An address of ours that no attachment has goes; tunnels', other nodes' and other programs' stay."""

    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/28", 28))
        crashed = cluster.agent("n1")
        kept = await crashed.assign(wanted("kept", V4))
        await crashed.assign(wanted("left", V4))
        ((name, spec),) = cluster.server.specs(BLOCKS).items()
        block = read_block(spec)
        for number, attribute in enumerate(
            (
                Attribute("vxlan-tunnel-addr-n1", {"node": "n1", "type": "vxlanTunnelAddress"}),
                Attribute("k8s-pod-network.calico", {"node": "n1", "pod": "of-calico"}),
                Attribute("of-another-node", {"node": "n2", "agent": "felixpy"}),
            ),
            start=10,
        ):
            block = assign_address(block, attribute, block.address(number))
        cluster.server.put(BLOCKS, name, block_spec(block))
        agent = cluster.agent("n1")
        agent.adopt("kept", kept)
        assert await agent.collect() == 1
        assert sorted(map(str, cluster.owners().values())) == [
            "k8s-pod-network.calico", "kept", "of-another-node", "vxlan-tunnel-addr-n1",
        ]  # fmt: skip

    run(scenario)


def test_fields_of_others_survive_a_write() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/28", 28))
        block = assign_address(
            new_block(Net.parse("10.48.0.0/28"), "n1"), Attribute("x", {}, {"releasedAt": "now"}), b"\x0a\x30\0\5"
        )
        cluster.server.put(BLOCKS, "10-48-0-0-28", {**block_spec(block), "affinityClaimTime": "yesterday"})
        await cluster.agent("n1").assign(wanted("a", V4))
        (spec,) = cluster.server.specs(BLOCKS).values()
        assert spec["affinityClaimTime"] == "yesterday"
        assert spec["attributes"][0]["releasedAt"] == "now"

    run(scenario)


def test_a_block_that_contradicts_itself_is_not_used() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/29", 30))
        broken = {**block_spec(new_block(Net.parse("10.48.0.0/30"), "n1")), "unallocated": [0, 0, 1, 2]}
        agent = CalicoBlocks(
            cluster.server,
            Surroundings("n1", lambda: cluster.pools, lambda: [(Net.parse("10.48.0.0/30"), "n1")]),
        )
        cluster.server.put(BLOCKS, "10-48-0-0-30", broken)
        (found,) = await agent.assign(wanted("a", V4))
        assert Net.parse("10.48.0.4/30").covers(found)

    run(scenario)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([0.0, 0.15]), st.booleans())
def test_agents_at_once_with_conflicts_and_lost_answers(seed: int, trouble: float, strict: bool) -> None:
    """Whatever the interleaving: an address has one owner, and what is in use is what was given and not given back."""

    async def scenario() -> None:
        chance = random.Random(seed)
        cluster = Cluster()
        cluster.configure(strictAffinity=strict)
        cluster.server.trouble = lambda what: chance.choice(("before", "after")) if chance.random() < trouble else ""
        agents = [cluster.agent(node) for node in ("n1", "n2", "n3")]
        had: dict[str, tuple[Net, ...]] = {}

        async def life(agent: CalicoBlocks, name: str) -> None:
            for number in range(4):
                handle = f"{name}-{number}"
                for _ in range(chance.randrange(5)):
                    await asyncio.sleep(0)
                try:
                    task = asyncio.ensure_future(agent.assign(wanted(handle, chance.choice((V4, BOTH)))))
                    if chance.random() < 0.1:
                        await asyncio.sleep(0)
                        task.cancel()
                    had[handle] = await task
                except (NoAddress, asyncio.CancelledError):
                    continue
                if chance.random() < 0.5:
                    while handle in had:
                        try:
                            await agent.release(handle, had[handle])
                            del had[handle]
                        except NoAddress:
                            await asyncio.sleep(0)

        await asyncio.gather(*(life(agent, f"{index}{part}") for index, agent in enumerate(agents) for part in "ab"))
        cluster.server.trouble = lambda what: ""
        for agent in agents:
            await agent.settled()
        given_out = [address.packed for some in had.values() for address in some]
        assert len(set(given_out)) == len(given_out)
        assert cluster.owners() == {address.packed: handle for handle, some in had.items() for address in some}
        assert cluster.handles() == cluster.handles_of_blocks(), "handles say what blocks say"
        confirmed = [spec["cidr"] for spec in cluster.server.specs(AFFINITIES).values() if spec["state"] == "confirmed"]
        assert len(set(confirmed)) == len(confirmed), "one block, one confirmed affinity"

    with pytest.MonkeyPatch.context() as patch:
        for name in ("blocks.SWEEP_FIRST", "blocks.SWEEP_LAST", "handles.RETRY_FIRST", "handles.RETRY_LAST"):
            patch.setattr(f"felixpy.ipam.{name}_SECONDS", 0.001)
        run(scenario)


def test_a_block_that_others_gave_back_is_not_this_nodes_any_more() -> None:
    """As Calico's kube-controllers do with an empty one: affinity pendingDeletion, block gone, affinity gone."""

    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/30", 30))
        agent = cluster.agent("n1")
        found = await agent.assign(wanted("a", V4))
        await agent.release("a", found)
        assert await release_block(cluster.server, "n1", Net.parse("10.48.0.0/30"), only_empty=True)
        assert (cluster.blocks(), cluster.server.specs(AFFINITIES)) == ([], {})
        assert await agent.assign(wanted("b", V4))
        assert cluster.blocks() == [(Net.parse("10.48.0.0/30"), "n1")]

    run(scenario)


def test_a_block_that_somebody_began_to_delete_is_made_anew() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/30", 30))
        cidr = Net.parse("10.48.0.0/30")
        cluster.server.put(BLOCKS, cidr_name(cidr), {**block_spec(new_block(cidr, "n1")), "deleted": True})
        agent = CalicoBlocks(cluster.server, Surroundings("n1", lambda: cluster.pools, list), cluster.clock)
        assert await agent.assign(wanted("a", V4))
        (spec,) = cluster.server.specs(BLOCKS).values()
        assert not spec["deleted"]

    run(scenario)


def test_an_empty_block_goes_whose_pool_is_not_for_this_node_any_more() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/29", 30))
        agent = cluster.agent("n1", rack="a")
        found = [await agent.assign(wanted(handle, V4)) for handle in ("a", "b")]
        cluster.pools = [pool("four", "10.48.0.0/29", 30, node_selector=parse_selector("rack == 'b'"))]
        await agent.release("a", found[0])
        assert len(cluster.blocks()) == 1, "somebody has an address of it"
        await agent.release("b", found[1])
        assert (cluster.blocks(), cluster.server.specs(AFFINITIES)) == ([], {})

    run(scenario)


def test_a_block_of_no_node_goes_with_its_last_address() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/30", 30))
        one, two = cluster.agent("n1"), cluster.agent("n2")
        await one.assign(wanted("a", V4))
        borrowed = await two.assign(Wanted("b", V4, attributes={"node": "n2"}))
        await one.settled()
        await two.settled()
        assert await free_node(cluster.server, "n1") == 1
        assert cluster.server.specs(AFFINITIES) == {}
        assert cluster.blocks() == [(Net.parse("10.48.0.0/30"), None)]
        assert cluster.owners() == {borrowed[0].packed: "b"}
        assert cluster.handles() == cluster.handles_of_blocks()
        await two.release("b", borrowed)
        assert cluster.blocks() == []
        assert cluster.handles() == {}

    run(scenario)


def test_a_node_that_is_gone_gives_back_what_it_borrowed() -> None:
    async def scenario() -> None:
        cluster = Cluster(pool("four", "10.48.0.0/30", 30))
        one, two = cluster.agent("n1"), cluster.agent("n2")
        kept = await one.assign(wanted("a", V4))
        await two.assign(Wanted("b", V4, attributes={"node": "n2"}))
        await one.settled()
        await two.settled()
        assert await free_node(cluster.server, "n2") == 0
        assert cluster.owners() == {kept[0].packed: "a"}
        assert set(cluster.handles()) == {"a"}
        assert await free_address(cluster.server, Net.parse("10.48.0.0/30"), kept[0].packed)
        assert not await free_address(cluster.server, Net.parse("10.48.0.0/30"), kept[0].packed)
        assert cluster.handles() == {}

    run(scenario)


def test_names_of_affinities() -> None:
    assert affinity_name("node1", Net.parse("10.48.0.0/26")) == "node1-10-48-0-0-26"
    long = affinity_name("n" * 250, Net.parse("10.48.0.0/26"))
    assert len(long) <= 253
    assert long.startswith("nnn")
    assert "-10-48-0-0-26-" in long
    assert long != affinity_name("n" * 250, Net.parse("10.48.0.64/26"))


def test_labels_of_affinities() -> None:
    """Calico's library asks for a node's affinities by them. The hash is the one that its own test expects."""
    labels = affinity_labels({"node": "node-a", "cidr": "fd00:48::/122", "type": "host"})
    assert labels == {
        "projectcalico.org/hostname-hash": "PY3TQE2E3XMTETLM2MJO3UITKPFB27YUJ4T4E5XGPEJON3SM4QAA",
        "projectcalico.org/affinity-type": "host",
        "projectcalico.org/ip-version": "6",
    }
