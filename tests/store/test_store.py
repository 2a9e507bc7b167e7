"""The store: which objects an update makes dirty, and that this never grows with the number of endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from felixpy.calc.graph import Calculation, Changes
from felixpy.model.net import Family, Net
from felixpy.model.resources import Encapsulation, FelixConfiguration, IPPool, Kind, Resource, ResourceKey, Update
from felixpy.store.store import PLACES, Store, block_nodes
from tests.calc.samples import HOST_FACTS, SETTINGS, affinity, block, endpoint, node, pool


def store_of(*resources: Resource) -> Store:
    store = Store("n1")
    for resource in resources:
        put(store, resource)
    return store


def put(store: Store, resource: Resource) -> set[str]:
    """Names of what the update makes dirty."""
    return {key.name for key in store.apply(Update(resource.key, resource))}


def drop(store: Store, resource: Resource) -> set[str]:
    return {key.name for key in store.apply(Update(resource.key, None))}


# --- endpoints --------------------------------------------------------------------------------------------------


def test_an_endpoint_concerns_itself_and_those_it_shares_something_with() -> None:
    store = store_of(*(endpoint(f"e{n}", f"10.65.1.{n}") for n in range(50)), pool("p", "10.65.0.0/16"), node("n1"))
    assert put(store, endpoint("new", "10.65.2.1", "fd00:65::1")) == {"new"}
    assert put(store, endpoint("same-address", "10.65.1.7")) == {"same-address", "e7"}
    assert put(store, endpoint("same-interface", interface="cali-e8")) == {"same-interface", "e8"}
    assert put(store, endpoint("elsewhere", "10.65.1.9", node="n2")) == {"elsewhere"}
    assert drop(store, endpoint("same-address")) == {"same-address", "e7"}
    assert drop(store, endpoint("unknown")) == {"unknown"}


def test_an_endpoint_concerns_a_block_that_says_its_address_is_elsewhere() -> None:
    store = store_of(
        block("10.65.1.0/26", "n1", ("10.65.1.5/32", "n2"), ("10.65.1.6/32", "n1")), affinity("10.65.9.5/32", "n2"),
        *(block(f"10.65.{number}.0/26", "n2") for number in range(10, 30)),
    )  # fmt: skip
    assert put(store, endpoint("a", "10.65.1.7", "10.65.10.1", "10.65.1.6")) == {"a"}
    assert put(store, endpoint("a", "10.65.1.5")) == {"a", "10-65-1-0-26"}
    assert put(store, endpoint("a", "10.65.1.5", mac="0a:00:00:00:00:01")) == {"a"}
    assert put(store, endpoint("a", "10.65.9.5")) == {"a", "10-65-1-0-26", "n2-10-65-9-5-32"}
    assert put(store, endpoint("a", "10.65.9.5", node="n2")) == {"a", "n2-10-65-9-5-32"}
    put(store, block("10.65.1.0/26", "n1"))
    assert put(store, endpoint("a", "10.65.1.5")) == {"a"}


def test_an_endpoint_that_changes_concerns_its_old_and_its_new_neighbours() -> None:
    store = store_of(endpoint("a", "10.65.1.1"), endpoint("b", "10.65.1.2"), endpoint("c", "10.65.1.1"))
    assert put(store, endpoint("c", "10.65.1.2")) == {"a", "b", "c"}
    assert put(store, endpoint("c", "10.65.1.3", node="n2")) == {"b", "c"}
    assert put(store, endpoint("c", "10.65.1.1", node="n2")) == {"c"}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_owner_is_the_youngest_then_the_first_by_name(order: tuple[int, int, int]) -> None:
    rivals = [
        endpoint("a", "10.65.1.1", interface="cali1", created="2024-01-01T00:00:00Z"),
        endpoint("c", "10.65.1.1", interface="cali1", created="2024-06-01T00:00:00Z"),
        endpoint("b", "10.65.1.1", interface="cali1", created="2024-06-01T00:00:00Z"),
    ]
    store = store_of(*(rivals[index] for index in order))
    address = Net.parse("10.65.1.1")
    for winner in (rivals[2], rivals[1], rivals[0]):
        assert store.address_owner(address) == store.interface_owner("cali1") == winner.key
        drop(store, winner)
    assert store.address_owner(address) is store.interface_owner("cali1") is None


def test_endpoints_of_other_nodes_own_nothing_here() -> None:
    store = store_of(endpoint("a", "10.65.1.1", interface="cali1", node="n2"))
    assert store.address_owner(Net.parse("10.65.1.1")) is store.interface_owner("cali1") is None
    assert not store.endpoints
    assert [peer.nets for peer in store.remote.values()] == [(Net.parse("10.65.1.1"),)]


# --- pools ------------------------------------------------------------------------------------------------------


def test_a_pool_concerns_the_pools_and_the_blocks_in_it() -> None:
    store = store_of(
        pool("p", "10.65.0.0/16"), pool("q", "fd00:65::/64"), block("10.65.1.0/26", "n2"), block("10.66.1.0/26", "n2")
    )
    assert put(store, pool("new", "10.65.0.0/20")) == {"new", "10-65-1-0-26", "n2"}
    assert put(store, pool("p", "10.65.0.0/17")) == {"p", "new", "10-65-1-0-26"}
    assert put(store, pool("new", "10.66.0.0/16")) == {"new", "10-65-1-0-26", "10-66-1-0-26", "n2"}
    assert drop(store, pool("new", "10.66.0.0/16")) == {"new", "10-66-1-0-26", "n2"}
    assert drop(store, pool("p", "10.65.0.0/17")) == {"p", "10-65-1-0-26", "n1", "n2"}  # the last one of its family


PLAIN = pool("p", "10.65.0.0/16")
OF_A_BALANCER = replace(PLAIN, allowed_uses=frozenset({"LoadBalancer"}))
SELF, POOLS, BLOCKS, OWN_NODE = {"p"}, {"inside"}, {"10-65-1-0-26"}, {"n1"}


@pytest.mark.parametrize(
    ("old", "new", "concerned"),
    [
        (PLAIN, PLAIN, SELF),
        (PLAIN, replace(PLAIN, disabled=True, block_size=28), SELF),
        (PLAIN, replace(PLAIN, nat_outgoing=True), SELF | POOLS),
        (PLAIN, replace(PLAIN, encapsulation=Encapsulation.VXLAN), SELF | OWN_NODE),
        (PLAIN, OF_A_BALANCER, SELF | POOLS | BLOCKS),
        (OF_A_BALANCER, replace(OF_A_BALANCER, encapsulation=Encapsulation.VXLAN), SELF),
        (OF_A_BALANCER, replace(OF_A_BALANCER, cidr=Net.parse("10.64.0.0/15")), SELF),
    ],
)
def test_a_pool_that_changes_concerns_what_depends_on_the_change(old: IPPool, new: IPPool, concerned: set[str]) -> None:
    store = store_of(pool("inside", "10.65.1.0/24"), pool("beside", "10.66.0.0/16"), block("10.65.1.0/26", "n2"), old)
    assert put(store, new) == concerned
    assert put(store, old) == concerned


class Touched(dict[ResourceKey, Any]):
    """Resources that count how many of them are looked at."""

    looks = 0

    def __iter__(self) -> Iterator[ResourceKey]:
        for key in super().__iter__():
            self.looks += 1
            yield key

    def items(self) -> Any:
        return [(key, self[key]) for key in self]

    def values(self) -> Any:
        return [self[key] for key in self]

    def keys(self) -> Any:
        return list(self)

    def get(self, key: ResourceKey, default: Any = None) -> Any:
        self.looks += 1
        return super().get(key, default)


def test_nat_outgoing_costs_the_same_with_any_number_of_blocks() -> None:
    def toggled(blocks: int) -> tuple[set[ResourceKey], int, Changes]:
        store = store_of(
            pool("p", "10.65.0.0/16"), pool("inside", "10.65.1.0/24"), pool("six", "fd00:65::/64"),
            *(block(f"10.65.{number // 4}.{number % 4 * 64}/26", "n2") for number in range(blocks)),
        )  # fmt: skip
        calculation = Calculation(store, SETTINGS, HOST_FACTS)
        calculation.calculate(store.all_keys())
        everything = store.endpoints, store.pools, store.blocks = Touched(), Touched(store.pools), Touched(store.blocks)
        toggle = pool("p", "10.65.0.0/16", nat=True)
        dirty = store.apply(Update(toggle.key, toggle))
        changes = calculation.calculate(dirty)
        return dirty, sum(each.looks for each in everything), changes

    few, many = toggled(10), toggled(1000)
    assert few == many
    assert {key.name for key in few[0]} == {"p", "inside"}
    assert [str(key) for key in few[2]] == ["masq-pools { 10.65.0.0/16 }"]


@pytest.mark.parametrize("order", [1, -1])
def test_the_covering_pool_is_the_longest_then_the_first_by_name(order: int) -> None:
    pools = [
        pool("wide", "10.0.0.0/8"),
        pool("b", "10.65.0.0/16"),
        pool("a", "10.65.0.0/16"),
        pool("balancer", "10.65.1.0/24", uses=["LoadBalancer"]),
        pool("other", "fd00::/8"),
    ][::order]
    store = store_of(*pools)
    covering = store.covering_pool(Net.parse("10.65.1.0/26"))
    assert covering is not None
    assert covering.key.name == "a"
    assert store.covering_pool(Net.parse("192.168.0.0/26")) is None
    assert store.covering_pool(Net.parse("10.0.0.0/7")) is None


# --- nodes and blocks -------------------------------------------------------------------------------------------


def test_a_node_concerns_no_block_that_leads_to_it() -> None:
    """Blocks name a nexthop, and that is the node's."""
    store = store_of(
        pool("p", "10.65.0.0/16"),
        block("10.65.1.0/26", "n2"),
        block("10.65.2.0/26", "n1", ("10.65.2.5/32", "n3")),
        affinity("10.65.3.0/26", "n2"),
    )
    assert put(store, node("n2", "192.0.2.2/24")) == {"n2"}
    assert put(store, node("n3", "192.0.2.3/24")) == {"n3"}
    (way,) = store.ways.of_node("n2")
    assert {key.name for key in store.ways.things(way)} == {"10-65-1-0-26", "n2-10-65-3-0-26"}
    assert way.namespace == "p"
    assert drop(store, node("n2")) == {"n2"}


def test_our_own_node_concerns_every_node() -> None:
    """Its address tells the interface that leads to another, and whether that is in our subnet."""
    resources = pool("p", "10.65.0.0/16"), block("10.65.1.0/26", "n2"), block("10.65.2.0/26", None), node("n3")
    store = store_of(*resources, endpoint("a", "10.65.1.1"))
    assert put(store, node("n1", "192.0.2.1/24")) == {"n1", "n2", "n3"}
    assert drop(store, node("n1")) == {"n1", "n2", "n3"}


def test_nodes_that_share_a_mac_concern_each_other() -> None:
    store = store_of(node("n2", mac="66:00:00:00:00:01"), node("n3", mac="66:00:00:00:00:02"))
    assert put(store, node("n4", "192.0.2.4/24", mac="66:00:00:00:00:02")) == {"n3", "n4"}
    assert store.mac_owner(Family.V4, bytes.fromhex("660000000002")) == "n3"
    assert drop(store, node("n3")) == {"n3", "n4"}
    assert store.mac_owner(Family.V4, bytes.fromhex("660000000002")) == "n4"


def test_an_address_of_a_tunnel_concerns_the_blocks_around_it() -> None:
    """It has a route of its own where no block leads to it."""
    store = store_of(pool("p", "10.65.0.0/16"), node("n2", "192.0.2.2/24", vxlan=["10.65.1.63"]))
    assert [way.namespace for way in store.ways.of_node("n2")] == ["p"]
    assert not store.is_in_block_of("n2", Net.parse("10.65.1.63"))
    assert put(store, block("10.65.1.0/26", "n2")) == {"10-65-1-0-26", "n2"}
    assert store.is_in_block_of("n2", Net.parse("10.65.1.63"))
    lent = block("10.65.1.0/26", "n2", ("10.65.1.63/32", "n3"))
    assert put(store, lent) == {"10-65-1-0-26", "n2", "n3"}
    assert not store.is_in_block_of("n2", Net.parse("10.65.1.63"))
    assert put(store, endpoint("a", "10.65.1.63")) == {"a", "10-65-1-0-26", "n2"}


@pytest.mark.parametrize("name", ["n1", "n2"])
def test_a_node_whose_addresses_stay_concerns_no_block(name: str) -> None:
    store = store_of(block("10.65.1.0/26", "n2"), node(name, "192.0.2.2/24"))
    relabelled = replace(node(name, "192.0.2.2/24"), labels={"rack": "r1"})
    assert put(store, relabelled) == {name}
    assert store.nodes[name] == relabelled


def test_a_block_that_changes_hands_leaves_its_old_node() -> None:
    store = store_of(pool("p", "10.65.0.0/16"), block("10.65.1.0/26", "n2", ("10.65.1.5/32", "n3")))
    assert put(store, block("10.65.1.0/26", "n4")) == {"10-65-1-0-26", "n2", "n3", "n4"}
    assert set(store.ways.nodes()) == {"n4"}


def test_the_nodes_of_a_block() -> None:
    assert block_nodes(None) == set()
    assert block_nodes(block("10.65.1.0/26", None)) == set()
    assert block_nodes(block("10.65.1.0/26", "n2", ("10.65.1.5/32", "n3"))) == {"n2", "n3"}
    assert block_nodes(affinity("10.65.1.0/26", "n2")) == {"n2"}


# --- the rest ---------------------------------------------------------------------------------------------------


def test_configurations_are_kept_and_make_nothing_dirty() -> None:
    store = store_of(endpoint("a", "10.65.1.1"))
    key = ResourceKey(Kind.FELIX_CONFIGURATION, "default")
    assert store.apply(Update(key, FelixConfiguration(key, {"ipv6Support": False}))) == set()
    assert store.configurations.keys() == {key}
    assert key not in store.all_keys()
    assert store.apply(Update(key, None)) == set()
    assert store.apply(Update(key, None)) == set()
    assert store.configurations == {}


def test_length_and_keys_count_every_object_once() -> None:
    everything: list[Resource] = [
        endpoint("a", "10.65.1.1"), pool("p", "10.65.0.0/16"), node("n1"),
        block("10.65.1.0/26", "n1", ("10.65.1.5/32", "n2")),
        affinity("10.65.1.0/26", "n1"),
    ]  # fmt: skip
    store = store_of(*everything, *everything)
    assert len(store) == len(everything)
    led_to = {ResourceKey(Kind.NODE, "n2"), ResourceKey(Kind.NODE, "n2", "p")}
    assert store.all_keys() == {resource.key for resource in everything} | led_to
    for resource in everything:
        drop(store, replace(resource))
    assert len(store) == 0
    assert not store._by_address._index._at and not store._by_interface._index._at
    assert not store._by_address._crowds and not store._by_interface._crowds
    ways = store.ways._things, store.ways._by_node, store.ways._by_pool
    for index in (store._by_remote_address, store._by_mac, store._pools_at, store._blocks_at, *ways):
        assert vars(index) == {"_at": {}}
    assert not store._routing_pools
    for prefixes in (store.pool_cidrs, store.masqueraded_cidrs, store._block_cidrs, store._tunnel_addresses):
        assert not prefixes._count and not any(prefixes._sorted.values()) and not any(prefixes._by_length.values())
    assert not store.ways._of
    assert not store._encapsulations


def test_every_kind_has_a_place() -> None:
    assert PLACES.keys() == set(Kind)


def test_news_of_a_link_is_about_endpoints_that_share_an_address_and_no_others() -> None:
    store = store_of(*(endpoint(f"e{n}", f"10.65.0.{n}") for n in range(50)))
    shared, mine = Net.parse("10.65.0.7"), endpoint("e7", "10.65.0.7").key
    assert store.link("cali-e7", up=True) == store.link("strange0", up=True) == set()
    rival = endpoint("rival", "10.65.0.7", created="2026-01-01T00:00:00Z")
    put(store, rival)
    assert store.address_owner(shared) == mine, "the interface of the younger one is not there"
    assert store.link("cali-rival", up=True) == {mine, rival.key}
    assert store.address_owner(shared) == rival.key
    assert store.link("cali-rival", up=True) == store.link("cali-e8", up=False) == set(), "no news"
    assert store.link("cali-rival", up=False) == {mine, rival.key}
    assert store.address_owner(shared) == mine
    assert store.link("cali-e7", up=False) == {mine, rival.key}
    assert store.address_owner(shared) == rival.key, "of several that are down the youngest"
