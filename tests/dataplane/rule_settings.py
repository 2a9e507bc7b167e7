"""Rule settings and set members for tests of the nftables back-end: a strategy of any, and the default ones."""

from __future__ import annotations

from hypothesis import strategies as st

from felixpy.calc.entries import STANDING_SETS, ElementKey, SetType
from felixpy.calc.mtu import Tunnel
from felixpy.calc.rule import ChainKey, Verdict
from felixpy.calc.rules import RuleSettings, desired_chains
from felixpy.config import DenyAction, EndpointToHostAction, PortRange, Settings
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.dataplane.packet_filter import FilterChange, FilterState, RenderedChain
from felixpy.model.net import Family, Net, parse_address
from tests.kernel import any_net

NAT_ADDRESS = {Family.V4: parse_address("192.0.2.1"), Family.V6: parse_address("2001:db8::1")}
INTERFACES = ["cali1", "cali23456789abc", "tap.0"]


def default_rules(family: Family) -> RuleSettings:
    return RuleSettings.of(Settings(), family, nftables=True)


def default_chains(packet_filter: NftablesFilter) -> dict[ChainKey, RenderedChain]:
    return packet_filter.render(desired_chains(default_rules(packet_filter.family)))


def rule_settings(family: Family) -> st.SearchStrategy[RuleSettings]:
    return st.builds(
        RuleSettings,
        family=st.just(family),
        prefixes=st.sampled_from([("cali",), ("cali", "tap"), ("abcdefghijklmno",), ("",)]),
        endpoint_to_host=st.sampled_from(EndpointToHostAction),
        deny=st.sampled_from(DenyAction),
        allow=st.sampled_from([Verdict.ACCEPT, Verdict.RETURN]),
        allow_spoofing=st.booleans(),
        allow_ipip=st.booleans(),
        allow_vxlan=st.booleans(),
        check_invalid=st.booleans(),
        exclude_hosts=st.booleans(),
        nat_ports=st.sampled_from([None, PortRange(1024, 65535), PortRange(7, 7)]),
        nat_address=st.sampled_from([None, NAT_ADDRESS[family]]),
        nat_interface=st.sampled_from(["", "eth0", "eth+"]),
        sees_errors=st.booleans(),
        tunnels=st.sampled_from([frozenset(), frozenset(one for one in Tunnel if one.outer is family)]),
        service_loops=st.sampled_from([None, Verdict.DROP, Verdict.REJECT]),
        floating=st.booleans(),
    )


def nets(family: Family) -> st.SearchStrategy[Net]:
    """Mostly anywhere, often in one small corner so that they are adjacent, and at both ends of the address space."""
    top = 2**family.bits - 1
    number = st.integers(0, top) | st.integers(0, 15) | st.integers(top - 15, top)
    length = st.integers(0, family.bits) | st.integers(family.bits - 4, family.bits)
    return st.builds(any_net, number, length, st.just(family))


@st.composite
def members(draw: st.DrawFn, family: Family) -> ElementKey:
    name = draw(st.sampled_from(STANDING_SETS))
    net = draw(nets(family))
    if name.type in (SetType.HOST_INTERFACE, SetType.HOST):
        net = Net.host(net.packed)
    return ElementKey(name, net, "" if name.type in (SetType.NET, SetType.HOST) else draw(st.sampled_from(INTERFACES)))


async def programmed(packet_filter: NftablesFilter, change: FilterChange) -> FilterState:
    """Write, expecting no refusal, and read everything back."""
    assert await packet_filter.write(change) == {}
    return await packet_filter.read()
