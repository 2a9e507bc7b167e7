"""What others do to our rules is read and undone by netlink, without a process, as the tool would do it; by it else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from felixpy.calc.rule import Rule, Verdict
from felixpy.calc.rules import SPOOF_CHECK, RuleSettings, desired_chains
from felixpy.config import ChainInsertMode, DenyAction, PortRange, Settings
from felixpy.dataplane.iptables import filter as filter_module
from felixpy.dataplane.iptables.nft_variant import NftVariantFilter
from felixpy.dataplane.packet_filter import FilterChange, FilterState, Part
from felixpy.model.net import Family, parse_address
from felixpy.netlink import nftables as nft
from felixpy.netlink.expressions import Expression
from felixpy.netlink.ipset import SetHeader
from felixpy.netlink.message import Message, Request
from felixpy.netlink.monitor import Monitor, monitor_nftables
from felixpy.netlink.nftables import Hook
from felixpy.netlink.transport import NetlinkSocket
from tests.dataplane.iptables.conftest import output, saved
from tests.dataplane.iptables.programmed import program, workload

NAT_ADDRESS = {Family.V4: parse_address("192.0.2.1"), Family.V6: parse_address("2001:db8::1")}
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


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was just read stays fresh, however busy the machine is."""
    monkeypatch.setattr(filter_module, "FRESH_SECONDS", 60.0)


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


async def by_the_tool(family: Family, *, remove: bool = False) -> FilterState:
    other = NftVariantFilter(family)
    try:
        if remove:
            await other.remove_all()
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


DAMAGE = ["nft flush ruleset", "{0} -t nat -F; {0} -t nat -X", "{0} -F FORWARD; nft delete chain {1} raw PREROUTING"]


@pytest.mark.parametrize("ports", [None, PortRange(1024, 2048)], ids=["", "ports"])
@pytest.mark.parametrize("address", [False, True], ids=["masquerade", "snat"])
@pytest.mark.parametrize("mode", ChainInsertMode)
def test_any_rule_is_put_back_by_netlink_as_the_tool_wrote_it(
    network: None, family: Family, ports: PortRange | None, address: bool, mode: ChainInsertMode
) -> None:
    settings = replace(
        RuleSettings.of(Settings(), family, nftables=False),
        deny=DenyAction.REJECT,
        allow_spoofing=True,
        exclude_hosts=True,
        prefixes=("cali", "t"),
        nat_ports=ports,
        nat_address=NAT_ADDRESS[family] if address else None,
        nat_interface="eth+",
    )
    tool, name = ("iptables-nft", "ip") if family is Family.V4 else ("ip6tables-nft", "ip6")
    one = NftVariantFilter(family, insert_mode=mode)
    try:
        asyncio.run(put_right(one, settings))
        asyncio.run(one.read())
        before = rules_of(tool)
        for damage in DAMAGE:
            output("sh", "-c", damage.format(tool, name))
            assert rules_of(tool) != before
            one._told, starts = True, one.tools.starts
            asyncio.run(put_right(one, settings))
            assert one.tools.starts == starts
            assert rules_of(tool) == before
            one._told = True
            asyncio.run(one.read())  # the read that confirms
            assert one.tools.starts == starts
            assert asyncio.run(one.read()).chains == one.render(desired_chains(settings))
        asyncio.run(by_the_tool(family, remove=True))
        assert "fpy-" not in "".join(saved(tool))
    finally:
        one.close()


async def put_right(one: NftVariantFilter, settings: RuleSettings) -> None:
    """What the agent does when it was told of a change of rules."""
    await one.create_containers()
    seen = (await one.read()).chains
    wanted = one.render(desired_chains(settings))
    different = {key: rules for key, rules in wanted.items() if seen.get(key) != rules}
    assert different
    assert await one.write(FilterChange(chains=different)) == {}


def rules_of(tool: str) -> dict[str, list[str]]:
    """Rules in their order by table and chain, as the tool prints them; without built-in chains that have none."""
    found: dict[str, list[str]] = {}
    table = ""
    for line in saved(tool):
        if line.startswith("*"):
            table = line
        elif line.startswith("-A"):
            _, chain, rule = line.split(" ", 2)
            found.setdefault(f"{table} {chain}", []).append(rule)
    return found


def test_rules_never_name_a_set_that_was_made_anew_by_its_old_number(programmed: NftVariantFilter) -> None:
    family = programmed.family
    tool = "iptables-nft" if family is Family.V4 else "ip6tables-nft"
    asyncio.run(programmed.read())
    before, starts = rules_of(tool), programmed.tools.starts
    output("nft", "flush", "ruleset")
    asyncio.run(programmed.sets.destroy_all())
    output("ipset", "create", "other", "hash:ip")
    programmed._told = True
    asyncio.run(put_right(programmed, RuleSettings.of(Settings(), family, nftables=False)))
    assert rules_of(tool) == before
    assert programmed.tools.starts == starts + 1


def test_where_the_kernel_does_not_number_its_sets_the_tool_writes(
    programmed: NftVariantFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux before 4.20: a rule that was seen could name a set that is another one now."""
    headers = programmed.sets.headers

    def unnumbered() -> dict[str, SetHeader]:
        return {name: header._replace(kernel_index=-1) for name, header in headers().items()}

    monkeypatch.setattr(programmed.sets, "headers", unnumbered)
    family = programmed.family
    asyncio.run(programmed.read())
    starts = programmed.tools.starts
    output("iptables-nft" if family is Family.V4 else "ip6tables-nft", "-F", "fpy-forward-to")
    programmed._told = True
    asyncio.run(put_right(programmed, RuleSettings.of(Settings(), family, nftables=False)))
    assert programmed.tools.starts == starts + 1


def test_what_the_kernel_refuses_is_written_by_the_tool(programmed: NftVariantFilter) -> None:
    family = programmed.family
    tool = "iptables-nft" if family is Family.V4 else "ip6tables-nft"
    asyncio.run(programmed.read())
    before, starts, errors = rules_of(tool), programmed.tools.starts, programmed.counts().write_errors
    known = programmed._known._rules
    known.update({key: rule._replace(expressions=(Expression("no such", ()),)) for key, rule in known.items()})
    output(tool, "-F", "fpy-forward-to")
    programmed._told = True
    asyncio.run(put_right(programmed, RuleSettings.of(Settings(), family, nftables=False)))
    assert rules_of(tool) == before
    assert (programmed.tools.starts, programmed.counts().write_errors) == (starts + 1, errors + 1)


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
    chains = {SPOOF_CHECK: (Rule((), Verdict.RETURN),)}
    asyncio.run(programmed.write(FilterChange(chains=dict(programmed.render(chains)))))
    assert programmed.tools.starts == starts + 2
    assert told(programmed, monitor)
    asyncio.run(programmed.read())
    assert programmed.tools.starts == starts + 3


def test_members_alone_are_no_business_of_rules(programmed: NftVariantFilter, monitor: Monitor) -> None:
    asyncio.run(programmed.sets.add(workload(programmed.family, 2)))
    assert not told(programmed, monitor)


def kube_rules(count: int) -> str:
    """What kube-proxy makes of so many Services."""
    lines = [
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-POSTROUTING - [0:0]",
        *(f":KUBE-SVC-{n} - [0:0]" for n in range(count)),
    ]
    lines += [f"-A KUBE-SERVICES -p tcp -m tcp --dport {n + 1} -j KUBE-SVC-{n}" for n in range(count)]
    lines += [f"-A KUBE-SVC-{n} -p tcp -m tcp -j RETURN" for n in range(count)]
    return "\n".join([*lines, "COMMIT", ""])


def test_what_others_do_to_their_own_chains_is_no_business_of_ours(
    programmed: NftVariantFilter, monitor: Monitor
) -> None:
    tool = "iptables-nft" if programmed.family is Family.V4 else "ip6tables-nft"
    output(f"{tool}-restore", "--noflush", stdin=kube_rules(3))
    output("sh", "-c", f"{tool} -t nat -A KUBE-SVC-1 -j RETURN; {tool} -N DOCKER; {tool} -A DOCKER -j RETURN")
    output(
        "sh", "-c", f"{tool} -A OUTPUT -j DOCKER; {tool} -t nat -I PREROUTING -j KUBE-SERVICES; {tool} -t mangle -N X"
    )
    output("sh", "-c", f"{tool} -t mangle -A FORWARD -j X")
    assert not told(programmed, monitor)
    output(tool, "-A", "FORWARD", "-j", "DOCKER")
    assert told(programmed, monitor)


def test_a_read_costs_the_same_however_many_rules_others_have(
    programmed: NftVariantFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are the rules that the kernel sends, and the chains and rules that are decoded."""
    tool = "iptables-nft" if programmed.family is Family.V4 else "ip6tables-nft"
    real_dump, real_chain, counted = NetlinkSocket.dump, nft.decode_chain, Counter[str]()

    def dump(socket: NetlinkSocket, request: Request) -> Iterator[list[Message]]:
        for messages in real_dump(socket, request):
            counted["rules"] += sum(message.type & 0xFF == nft.NEWRULE for message in messages)
            yield messages

    def decode_chain(message: Message) -> tuple[str, str, Hook | None, int]:
        counted["chains"] += 1
        return real_chain(message)

    monkeypatch.setattr(NetlinkSocket, "dump", dump)
    monkeypatch.setattr(nft, "decode_chain", decode_chain)

    def cost() -> Counter[str]:
        counted.clear()
        output(tool, "-F", "fpy-forward-to")
        programmed._told, starts = True, programmed.tools.starts
        asyncio.run(put_right(programmed, RuleSettings.of(Settings(), programmed.family, nftables=False)))
        assert programmed.tools.starts == starts
        return counted.copy()

    output(f"{tool}-restore", "--noflush", stdin=kube_rules(1))
    few = cost()
    output(f"{tool}-restore", "--noflush", stdin=kube_rules(300))
    assert cost() == few
    assert few["rules"] < 50
