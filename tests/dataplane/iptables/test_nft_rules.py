"""What others do to our rules is read by netlink, without a process, as the tool would tell it; by the tool else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from felixpy.dataplane.iptables.nft_variant import NftVariantFilter
from felixpy.dataplane.packet_filter import FilterState, Part
from felixpy.model.net import Family
from felixpy.netlink.monitor import Monitor, monitor_nftables
from tests.dataplane.iptables.conftest import output
from tests.dataplane.iptables.programmed import program, workload

JUMP = "-m comment --comment felixpy -j fpy-FORWARD"
KNOWN = {
    "nothing": "true",
    "counters set to zero": "{} -Z",
    "jump deleted": f"{{}} -D FORWARD {JUMP}",
    "jump twice": f"{{}} -A FORWARD {JUMP}",
    "rule of others before our jump": "{} -I FORWARD -s ::/0 -j ACCEPT || {} -I FORWARD -j ACCEPT",
    "rule of others behind it": "{} -A FORWARD -j ACCEPT",
    "chain flushed": "{} -F fpy-forward-to",
    "rule deleted": "{} -t raw -D fpy-PREROUTING 1",
    "rule body changed": "{} -t nat -R fpy-nat-outgoing 1 -j RETURN",
    "rule added": "{} -I fpy-forward-from -p udp -j ACCEPT",
    "chain of ours added": "{} -N fpy-stray",
    "everything flushed": "nft flush ruleset",
}


@pytest.fixture
def monitor(network: None) -> Iterator[Monitor]:
    one = monitor_nftables(())
    yield one
    one.close()


@pytest.fixture
def programmed(monitor: Monitor, family: Family) -> Iterator[NftVariantFilter]:
    """A filter that has written the usual rules and has read them once since."""
    one = NftVariantFilter(family)
    asyncio.run(program(one, 1))
    assert told(one, monitor)
    asyncio.run(one.read())
    yield one
    one.close()


def told(one: NftVariantFilter, monitor: Monitor) -> bool:
    """Whether the kernel's notifications mean that rules have to be read again."""
    messages = monitor.read()
    assert messages is not None
    return Part.RULES in [one.notify(message) for message in messages]


async def by_the_tool(family: Family) -> FilterState:
    other = NftVariantFilter(family)
    try:
        return await other.read()
    finally:
        other.close()


@pytest.mark.parametrize("what", KNOWN)
def test_a_notification_needs_no_process(programmed: NftVariantFilter, monitor: Monitor, what: str) -> None:
    family = programmed.family
    right = asyncio.run(programmed.read()).chains
    tool = "iptables-nft" if family is Family.V4 else "ip6tables-nft"
    output("sh", "-c", KNOWN[what].replace("{}", tool))
    changed = told(programmed, monitor)
    assert changed == (KNOWN[what] != "true")
    programmed._told = True
    starts = programmed.tools.starts
    seen = asyncio.run(programmed.read())
    assert programmed.tools.starts == starts
    truth = asyncio.run(by_the_tool(family))
    assert seen.chains.keys() == truth.chains.keys()
    assert {key for key in right if seen.chains.get(key) != right[key]} == {
        key for key in right if truth.chains.get(key) != right[key]
    }
    assert {key: len(rules) for key, rules in seen.chains.items()} == {
        key: len(rules) for key, rules in truth.chains.items()
    }
    assert seen.foreign == truth.foreign

    asyncio.run(program(programmed, 1))
    extra = {"chain of ours added": 1}.get(what, 0)
    assert len(asyncio.run(programmed.read()).chains) == len(right) + extra
    assert all(asyncio.run(by_the_tool(family)).chains[key] == rules for key, rules in right.items())


def test_a_jump_in_another_form_is_read_by_the_tool(programmed: NftVariantFilter, monitor: Monitor) -> None:
    tool = "iptables-nft" if programmed.family is Family.V4 else "ip6tables-nft"
    output(tool, "-I", "FORWARD", "-p", "udp", "-j", "fpy-FORWARD")
    assert told(programmed, monitor)
    starts = programmed.tools.starts
    seen = asyncio.run(programmed.read())
    assert programmed.tools.starts == starts + 1
    assert seen.chains == asyncio.run(by_the_tool(programmed.family)).chains


def test_the_tool_reads_what_was_written_or_not_told_of(programmed: NftVariantFilter, monitor: Monitor) -> None:
    """A periodic comparison takes nothing from memory, and what has just been written has to be learned."""
    starts = programmed.tools.starts
    asyncio.run(programmed.read())
    assert programmed.tools.starts == starts + 1
    asyncio.run(program(programmed, 1))
    starts = programmed.tools.starts
    assert told(programmed, monitor)
    asyncio.run(programmed.read())
    assert programmed.tools.starts == starts + 1


def test_members_alone_are_no_business_of_rules(programmed: NftVariantFilter, monitor: Monitor) -> None:
    asyncio.run(programmed.sets.add(workload(programmed.family, 2)))
    assert not told(programmed, monitor)
