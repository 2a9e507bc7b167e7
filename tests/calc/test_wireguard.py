"""WireGuard's part of the calculation: peers, table and rule; any history of updates against a start with its end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from felixpy.calc.entries import DeviceKey, Key, PeerKey, Value
from felixpy.calc.graph import HOST, Absent, Calculation
from felixpy.config import Settings
from felixpy.model.net import Family
from felixpy.model.resources import Node, ResourceKey, Update
from felixpy.model.wireguard import format_key
from felixpy.store.store import Store
from tests.calc.samples import (
    ENCRYPTED,
    HOST_FACTS,
    NODE,
    POLICY_KEYS,
    SETTINGS,
    block,
    calculated,
    endpoint,
    node,
    said,
)
from tests.calc.test_histories import PROPERTY, blocks, endpoints, follow, latest, nodes, pools, take

K2 = format_key(bytes((2,) * 32))
MARK = ENCRYPTED.wireguard_mark
OWN = node(NODE, "192.0.2.1/24", "2001:db8::1/64", wireguard=["10.65.0.62", "fd00:65::3e"])
PEER = node("n2", "192.0.2.2/24", "2001:db8::2/64", key=2, wireguard=["10.65.0.126"])
BLOCKS = block("10.65.0.0/26", NODE), block("10.65.0.64/26", "n2"), block("fd00:65::40/122", "n2")
HAS_A_KEY = replace(HOST_FACTS, wireguard_keys={Family.V4: bytes((3,) * 32), Family.V6: bytes((3,) * 32)})


def of_wireguard(calculation: Calculation) -> dict[str, str]:
    """Entries that a calculation without WireGuard has not."""
    words = "wireguard", "wg-v6", "endpoint ", "lookup", " table "
    return {key: value for key, value in said(calculation).items() if any(word in f"{key} {value}" for word in words)}


def test_a_node_and_its_peer() -> None:
    assert of_wireguard(calculated(OWN, PEER, *BLOCKS, settings=ENCRYPTED)) == {
        "wireguard.cali": f"wireguard listen-port 51820 fwmark {MARK:#x} mtu 1440",
        "wg-v6.cali": f"wireguard listen-port 51821 fwmark {MARK:#x} mtu 1420",
        "net.ipv4.conf.wireguard.cali.rp_filter": "2",
        "10.65.0.62 dev wireguard.cali": "",
        "fd00:65::3e dev wg-v6.cali": "",
        f"99: not from all fwmark {MARK:#x}/{MARK:#x} lookup 1": "",
        f"99: not from all fwmark {MARK:#x}/{MARK:#x} lookup 2": "",
        f"{K2} dev wireguard.cali": "endpoint 192.0.2.2:51820 allowed-ips 10.65.0.64/26,10.65.0.126/32",
        f"{K2} dev wg-v6.cali": "endpoint [2001:db8::2]:51821 allowed-ips fd00:65::40/122",
        "10.65.0.0/26 metric 0 table 1": "throw",
        "10.65.0.64/26 metric 0 table 1": "dev wireguard.cali",
        "10.65.0.126/32 metric 0 table 1": "dev wireguard.cali",
        "fd00:65::40/122 metric 1024 table 2": "dev wg-v6.cali",
    }


def test_nothing_of_it_without_the_setting() -> None:
    assert of_wireguard(calculated(OWN, PEER, *BLOCKS)) == {}


def test_what_is_local_is_not_led_into_the_tunnel_though_a_block_of_another_node_has_it() -> None:
    found = of_wireguard(calculated(OWN, PEER, *BLOCKS, endpoint("a", "10.65.0.70"), settings=ENCRYPTED))
    assert found["10.65.0.70/32 metric 0 table 1"] == "throw"
    assert found["10.65.0.64/26 metric 0 table 1"] == "dev wireguard.cali"


def peers(calculation: Calculation) -> set[str]:
    return {str(key) for key in calculation.entries() if isinstance(key, PeerKey)}


def test_who_is_no_peer_and_why() -> None:
    twin = node("n3", "192.0.2.3/24", key=2)
    cases = (
        (node("n2", "192.0.2.2/24"), "node n2 publishes no IPv4 WireGuard key: what goes there is not encrypted"),
        (node("n2", key=2), "node n2 has no IPv4 address: what goes there is not encrypted"),
        (node("n2", "192.0.2.2/24", key=3), "node n2 publishes this node's own WireGuard key"),
    )
    for one, why in cases:
        calculation = calculated(OWN, one, *BLOCKS[:2], settings=ENCRYPTED, host=HAS_A_KEY)
        assert peers(calculation) == set()
        assert calculation.problems[one.key].startswith(why)
        assert of_wireguard(calculation)["10.65.0.64/26 metric 0 table 1"] == "throw"
    calculation = calculated(OWN, PEER, twin, *BLOCKS[:2], settings=ENCRYPTED, host=HAS_A_KEY)
    assert peers(calculation) == set()
    assert calculation.problems[PEER.key] == "nodes n2 and n3 publish the same WireGuard key"


def test_host_encryption() -> None:
    settings = replace(ENCRYPTED, wireguard_host_encryption_enabled=True)
    found = said(calculated(OWN, PEER, *BLOCKS, settings=settings, host=HAS_A_KEY))
    assert "192.0.2.1 dev wireguard.cali" in found
    assert "10.65.0.62 dev wireguard.cali" not in found
    assert found["192.0.2.2/32 metric 0 table 1"] == "dev wireguard.cali"
    assert "192.0.2.2/32" in found[f"{K2} dev wireguard.cali"]
    assert found["2001:db8::2/128 metric 1024 table 2"] == "dev wg-v6.cali"


def test_ipv6_alone() -> None:
    settings = Settings(nodename=NODE, ipv4_support=False, wireguard_enabled=True, wireguard_enabled_v6=True)
    calculation = calculated(
        node(NODE, "2001:db8::1/64"), node("n2", "2001:db8::2/64", key=2), *BLOCKS, settings=settings
    )
    assert peers(calculation) == {f"{K2} dev wg-v6.cali"}
    assert {str(key) for key in calculation.entries() if isinstance(key, DeviceKey)} == {"wg-v6.cali"}
    assert calculation.problems.keys().isdisjoint({OWN.key, PEER.key})


def test_one_message_for_a_block_whatever_the_number_of_nodes() -> None:
    others = [node(f"m{number}", f"192.0.2.{number}/24", key=number) for number in range(10, 200)]
    calculation = calculated(OWN, PEER, *BLOCKS, *others, settings=ENCRYPTED)
    more = block("10.65.1.0/26", "n2")
    changes = calculation.calculate(calculation.store.apply(Update(more.key, more)))
    assert sorted(type(key).__name__ for key in changes) == ["PeerKey", "RouteKey"]


KEYS = st.sampled_from([0, 1, 2, 2, 3])
ADDRESSES = st.sampled_from([[], ["10.65.0.4", "fd00:65::4"]])


@st.composite
def encrypted_nodes(draw: st.DrawFn) -> Node:
    keys = node("x", key=draw(KEYS), wireguard=draw(ADDRESSES))
    return replace(
        draw(nodes()),
        wireguard_ipv4=keys.wireguard_ipv4,
        wireguard_ipv6=keys.wireguard_ipv6,
        wireguard_public_key=keys.wireguard_public_key,
        wireguard_public_key_ipv6=keys.wireguard_public_key_ipv6,
    )


@st.composite
def updates(draw: st.DrawFn) -> Update:
    resource = draw(st.one_of(encrypted_nodes(), blocks(), encrypted_nodes(), blocks(), endpoints(), pools()))
    return Update(resource.key, None if draw(st.sampled_from([False, False, True])) else resource)


def outcome(calculation: Calculation) -> tuple[dict[Key, Value | Absent], dict[ResourceKey, str]]:
    """But for policy, which has nothing to do with it."""
    entries = {key: value for key, value in calculation.entries().items() if not isinstance(key, POLICY_KEYS)}
    return entries, calculation.problems


@given(st.lists(st.lists(updates(), min_size=1, max_size=4), max_size=12))
@PROPERTY
def test_incremental_equals_from_scratch(batches: list[list[Update]]) -> None:
    calculation, mirror = Calculation(Store(NODE), ENCRYPTED, HAS_A_KEY), dict[Key, Value]()
    follow(mirror, calculation.calculate({HOST, *calculation.store.node_keys()}))
    for batch in batches:
        follow(mirror, take(calculation, batch))
        assert mirror == calculation.entries()
    scratch = Calculation(Store(NODE), ENCRYPTED, HAS_A_KEY)
    for update in latest(batches):
        scratch.store.apply(update)
    scratch.calculate({HOST, *scratch.store.all_keys()})
    assert outcome(calculation) == outcome(scratch)
    assert outcome_after(calculation, SETTINGS) == outcome_after(scratch, SETTINGS)


def outcome_after(calculation: Calculation, settings: Settings) -> object:
    calculation.reconfigure(settings, HOST_FACTS)
    return outcome(calculation)
