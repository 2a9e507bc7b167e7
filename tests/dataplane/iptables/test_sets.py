"""Sets: made, replaced without a gap, and changed without a process or a rule."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.calc.entries import ElementKey, SetName
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.iptables.layout import set_name
from felixpy.dataplane.iptables.legacy import LegacyFilter
from felixpy.dataplane.packet_filter import FilterChange, FilterError
from felixpy.model.net import Family, Net
from tests.dataplane.iptables.conftest import MakeFilter, output, saved
from tests.dataplane.iptables.programmed import program, workload


def test_members_start_no_process_and_write_no_rule(packet_filter: IptablesFilter, tool: str) -> None:
    async def run() -> None:
        await program(packet_filter, 1)
        rules, starts, sends = saved(tool), packet_filter.tools.starts, packet_filter.sets.socket.sends
        commits = packet_filter.commits if isinstance(packet_filter, LegacyFilter) else 0
        messages = packet_filter.sets.socket.messages_sent
        assert await packet_filter.write(FilterChange(add=workload(packet_filter.family, 2))) == {}
        assert await packet_filter.write(FilterChange(remove=workload(packet_filter.family, 1))) == {}
        assert packet_filter.tools.starts == starts
        assert packet_filter.sets.socket.sends == sends + 2
        assert packet_filter.sets.socket.messages_sent == messages + 4
        assert isinstance(packet_filter, LegacyFilter) is (packet_filter.variant == "legacy")
        assert commits == (packet_filter.commits if isinstance(packet_filter, LegacyFilter) else 0)
        assert saved(tool) == rules
        assert (await packet_filter.read()).elements == set(workload(packet_filter.family, 2))

    asyncio.run(run())


def test_writing_nothing_sends_nothing(packet_filter: IptablesFilter) -> None:
    async def run() -> None:
        await program(packet_filter, 1)
        await packet_filter.read()
        sent, starts = packet_filter.sets.socket.messages_sent, packet_filter.tools.starts
        assert await packet_filter.write(FilterChange()) == {}
        assert (packet_filter.sets.socket.messages_sent, packet_filter.tools.starts) == (sent, starts)

    asyncio.run(run())


def test_present_and_absent_members_are_successes(packet_filter: IptablesFilter, family: Family) -> None:
    async def run() -> None:
        await packet_filter.create_containers()
        one, two = workload(family, 1), workload(family, 2)
        for _ in range(2):
            assert await packet_filter.write(FilterChange(add=one, remove=two)) == {}
        assert (await packet_filter.read()).elements == set(one)

    asyncio.run(run())


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_a_full_set_names_the_member_and_takes_the_others(make_filter: MakeFilter, family: Family) -> None:
    async def run() -> None:
        packet_filter = make_filter(family, max_ipset_size=1)
        await packet_filter.create_containers()
        first, second = workload(family, 1), workload(family, 2)
        refused = await packet_filter.write(FilterChange(add=[first[0], second[0], second[1]]))
        assert refused == {second[0]: "the set is full (MaxIpsetSize)"}
        assert (await packet_filter.read()).elements == {first[0], second[1]}

    asyncio.run(run())


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_a_missing_set_is_named_per_member(packet_filter: IptablesFilter, family: Family) -> None:
    key = workload(family, 1)[0]
    assert asyncio.run(packet_filter.write(FilterChange(add=[key]))) == {key: "the set does not exist"}


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_an_unused_set_of_another_type_is_replaced(packet_filter: IptablesFilter, family: Family) -> None:
    async def run() -> None:
        output("ipset", "create", set_name(family, SetName.POOLS), "hash:ip", "family", "inet6")
        assert not (await packet_filter.read()).containers
        await packet_filter.create_containers()
        assert (await packet_filter.read()).containers
        assert not (await packet_filter.read()).foreign

    asyncio.run(run())


def test_a_small_set_in_use_grows_and_keeps_its_members(make_filter: MakeFilter, family: Family, tool: str) -> None:
    async def run() -> None:
        await program(make_filter(family, max_ipset_size=128), 1, 2)
        larger = make_filter(family, max_ipset_size=4096)
        before, rules = await larger.read(), saved(tool)
        assert not before.containers
        await larger.create_containers()
        after = await larger.read()
        assert after.containers
        assert (after.elements, after.chains, after.foreign) == (before.elements, before.chains, ())
        assert saved(tool) == rules

    asyncio.run(run())


@pytest.mark.parametrize("users", ["legacy", "nft"])
def test_a_used_set_of_another_type_is_an_error_that_names_who_uses_it(
    packet_filter: IptablesFilter, family: Family, tool: str, users: str
) -> None:
    name, other = set_name(family, SetName.FROM_WORKLOAD), f"{tool.partition('-')[0]}-{users}"
    output("ipset", "create", name, "hash:ip", "family", "inet" if family is Family.V4 else "inet6")
    rule = ("OUTPUT", "-m", "set", "--match-set", name, "dst", "-j", "ACCEPT")
    output(other, "-A", *rule)
    output(other, "-A", "FORWARD", "-m", "comment", "--comment", f"no --match-set {name} of its own", "-j", "ACCEPT")
    named = rf"; remove what names them first, in chain OUTPUT of table filter \({other}-save\)$"
    with pytest.raises(FilterError, match=f"{name} has the type hash:ip.*{named}"):
        asyncio.run(packet_filter.create_containers())
    with pytest.raises(FilterError, match=f"{name} are in use by rules of another program{named}"):
        asyncio.run(packet_filter.remove_all())
    assert packet_filter.sets.misfits() == [name]
    output(other, "-D", *rule)
    asyncio.run(packet_filter.create_containers())
    assert packet_filter.sets.misfits() == []


def test_where_only_our_own_rules_use_an_old_set_cleanup_is_the_advice_and_helps(
    packet_filter: IptablesFilter, family: Family, tool: str
) -> None:
    name = set_name(family, SetName.FROM_WORKLOAD)
    output("ipset", "create", name, "hash:ip", "family", "inet" if family is Family.V4 else "inet6")
    output(tool, "-N", "fpy-old")
    output(tool, "-A", "fpy-old", "-m", "set", "--match-set", name, "dst", "-j", "ACCEPT")
    with pytest.raises(FilterError, match="stop the agent and run 'felixpy cleanup'"):
        asyncio.run(packet_filter.create_containers())
    asyncio.run(packet_filter.remove_all())
    assert name not in output("ipset", "list", "-n")


@pytest.mark.parametrize("variant", ["nft"], indirect=True)
def test_a_prefix_holds_at_most_64_interfaces_and_addresses_hold_thousands(
    packet_filter: IptablesFilter, family: Family
) -> None:
    async def run() -> None:
        await packet_filter.create_containers()
        net = Net(bytes([32]) + bytes(family.bits // 8 - 1), 8)
        shared = [ElementKey(SetName.ALLOWED_SOURCES, net, f"cali{i}") for i in range(65)]
        pairs = [key for i in range(1, 2000) for key in workload(family, i % 250 + 1)[:1]]
        refused = await packet_filter.write(FilterChange(add=shared + pairs))
        assert list(refused) == shared[64:]

    asyncio.run(run())
