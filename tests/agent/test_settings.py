"""Where a running agent's settings come from, and what becomes of them when the stream changes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from felixpy.agent.outcome import Outcome
from felixpy.calc import graph
from felixpy.calc.endpoints import endpoint_entries
from felixpy.calc.entries import STANDING_SETS
from felixpy.config.settings import DECLARATIONS
from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.ownership import Ownership
from felixpy.demo.resources import Object, felix_configuration, v3
from felixpy.model.resources import Kind, ResourceKey, WorkloadEndpoint
from tests.agent.bench import GOOD, LEGACY, NFT, NFTABLES, NODE, POOLS, Running, members, routes, running, topic_of
from tests.broker import Broker
from tests.kernel import iptables_save, run

ACCEPT, DROP, RETURN = "Accept", "Drop", "Return"


def action(value: str, name: str = "default") -> Object:
    return felix_configuration(name, defaultEndpointToHostAction=value)


def host_action(agent: Running) -> str:
    return agent.agent.settings.default_endpoint_to_host_action.value


async def start(agent: Running, *documents: Object) -> None:
    await agent.stream.put(*POOLS, GOOD, *documents)
    await agent.in_sync()
    await agent.endpoint_is("good", "up")


async def compared(agent: Running) -> None:
    """Until the comparison that follows a start is over."""
    await agent.until(lambda: agent.agent.dataplane.routing.routes.whole.times == 2, "the comparison after the start")
    await agent.quiet()


def input_rules() -> list[str]:
    """The rule set without what it counts and holds, in both families."""
    return [run("nft", "-st", "list", "table", family, "felixpy") for family in ("ip", "ip6")]


def test_precedence_is_environment_file_node_selector_default(broker: Broker, tmp_path: Path) -> None:
    node = v3("Node", NODE, {"bgp": {"ipv4Address": "192.0.2.1/24"}})
    node["metadata"]["labels"] = {"rack": "r1"}
    selected = felix_configuration(
        "rack", nodeSelector="rack == 'r1'", defaultEndpointToHostAction=RETURN, natPortRange="1000:2000"
    )
    default = felix_configuration(
        "default", defaultEndpointToHostAction=DROP, natPortRange="5:6", routeRefreshInterval="7s"
    )
    file = tmp_path / "felixpy.toml"
    file.write_text('IptablesRefreshInterval = "11s"\nIpsetsRefreshInterval = "12s"\n')
    own = felix_configuration(
        f"node.{NODE}", defaultEndpointToHostAction=ACCEPT, iptablesRefreshInterval="13s", ipsetsRefreshInterval="13s"
    )
    other = felix_configuration("node.n2", defaultEndpointToHostAction=DROP)

    async def scenario() -> None:
        async with running(broker, {**NFTABLES, "FELIX_IPSETSREFRESHINTERVAL": "14"}, file=file) as agent:
            await start(agent, default, selected, own, other, node)
            await agent.until(lambda: host_action(agent) == ACCEPT, "the settings of the node")
            settings = agent.agent.settings
            assert (settings.ipsets_refresh_interval, settings.iptables_refresh_interval) == (14.0, 11.0)
            assert str(settings.nat_port_range) == "1000-2000"
            assert settings.route_refresh_interval == 7.0
            await agent.stream.raw(topic_of(own), b"")
            await agent.until(lambda: host_action(agent) == RETURN, "the selected settings")
            node["metadata"]["labels"] = {"rack": "r2"}
            await agent.stream.put(node)
            await agent.until(lambda: host_action(agent) == DROP, "the default settings")
            assert agent.problems == {}

    asyncio.run(scenario())


def test_a_node_whose_labels_stay_makes_nothing_be_looked_at_again(broker: Broker) -> None:
    """To judge every endpoint again would cost more the more of them there are."""

    async def scenario() -> None:
        async with running(broker) as agent:
            node = v3("Node", NODE, {"bgp": {"ipv4Address": "192.0.2.1/24"}})
            node["metadata"]["labels"] = {"rack": "r1"}
            await start(agent, node)
            judged: list[object] = []
            agent.agent.outcome.judge_again = judged.append  # type: ignore[method-assign]
            node["spec"]["bgp"]["ipv4Address"] = "192.0.2.9/24"
            await agent.stream.put(node)
            await agent.until(lambda: "192.0.2.9" in str(members("hosts")), "the node's other address")
            assert judged == []
            node["metadata"]["labels"] = {"rack": "r2"}
            await agent.stream.put(node)
            await agent.until(lambda: judged, "settings by the node's other labels")

    asyncio.run(scenario())


def test_a_change_in_the_stream_changes_rules_and_only_them(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent, action(DROP))
            before, held = input_rules(), members("from-workload")
            await agent.stream.put(action(ACCEPT))
            await agent.until(lambda: input_rules()[0] != before[0] and input_rules()[1] != before[1], "other rules")
            assert members("from-workload") == held
            await agent.stream.put(action(DROP))
            await agent.until(lambda: input_rules() == before, "the first rules")
            nodes = felix_configuration("default", natOutgoingExclusions="IPPoolsAndHostIPs")
            await agent.stream.put(nodes)
            await agent.until(lambda: all("@hosts" in text for text in input_rules()), "the hosts set in the NAT rule")

    asyncio.run(scenario())


def test_a_bad_value_is_reported_with_its_object_and_the_next_source_counts(broker: Broker) -> None:
    bad = felix_configuration(f"node.{NODE}", defaultEndpointToHostAction="Sometimes", mqttHost="elsewhere")

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent, action(ACCEPT), bad)
            key = f"FelixConfiguration node.{NODE}"
            await agent.until(lambda: key in agent.problems, "the problem")
            reason = agent.problems[key]
            assert f"DefaultEndpointToHostAction ({key}): 'Sometimes'" in reason
            assert "`" not in reason
            assert "MQTTHost" in reason
            assert host_action(agent) == ACCEPT
            assert agent.metric("felixpy_problems", kind="FelixConfiguration") == 1
            await agent.until(lambda: agent.stream.status[NODE]["problem_count"] == 1, "the problem in the status")
            await agent.stream.put(felix_configuration("default", defaultEndpointToHostAction=DROP))
            await agent.until(lambda: host_action(agent) == DROP, "another default")
            assert len(agent.events("problem", object=key)) == 1
            await agent.stream.put(action(RETURN, f"node.{NODE}"))
            await agent.until(lambda: host_action(agent) == RETURN, "the mended value")
            await agent.until(lambda: agent.problems == {}, "the end of the problem")
            assert agent.metric("felixpy_problems", kind="FelixConfiguration") == 0

    asyncio.run(scenario())


def test_unknown_settings_and_those_without_effect_are_named_once(broker: Broker) -> None:
    strange = {"bpfEnabled": True, "frobnicate": 1}

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent, felix_configuration("default", **strange))
            await agent.until(lambda: len(agent.events("ignored")) == 2, "both names")
            for value in (ACCEPT, DROP):
                await agent.stream.put(felix_configuration("default", defaultEndpointToHostAction=value, **strange))
                await agent.until(lambda value=value: host_action(agent) == value, "the setting that is known")
            assert sorted(event["what"].split(":")[0] for event in agent.events("ignored")) == [
                "setting bpfEnabled (FelixConfiguration default)",
                "setting frobnicate (FelixConfiguration default)",
            ]
            assert agent.problems == {}

    asyncio.run(scenario())


def of_protocol(number: int) -> set[str]:
    """Lines of our routes with a protocol number."""
    lines = [run("ip", version, "route", "show", "proto", str(number)).splitlines() for version in ("-4", "-6")]
    return {line.strip() for found in lines for line in found}


def test_another_route_protocol_takes_the_routes_along(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent)
            before = of_protocol(222)
            assert len(before) == 2
            for number in (223, 224):
                await agent.stream.put(felix_configuration("default", deviceRouteProtocol=number))
                await agent.until(lambda number=number: of_protocol(number) == before, f"routes of {number}")
                assert of_protocol(number - 1) == set()

    asyncio.run(scenario())


def dumps(agent: Running) -> dict[str, int]:
    """Dumps asked for so far: those of links, routes and neighbours, and those of each packet filter."""
    return {name: socket.dumps_sent for name, socket in agent.agent.dataplane.sockets().items()}


def test_a_setting_of_rules_alone_reads_nothing_and_looks_at_no_endpoint(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    calculated: list[ResourceKey] = []
    judged: list[ResourceKey] = []

    def counting(endpoint: WorkloadEndpoint, *others: Any) -> Any:
        calculated.append(endpoint.key)
        return endpoint_entries(endpoint, *others)

    def judging(self: Outcome, thing: ResourceKey, **known: bool) -> tuple[str, str]:
        judged.append(thing)
        return state_of(self, thing, **known)

    state_of = Outcome.state_of
    monkeypatch.setattr(Outcome, "state_of", judging)
    monkeypatch.setattr(graph, "endpoint_entries", counting)

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent, action(ACCEPT))
            await compared(agent)
            assert host_action(agent) == ACCEPT
            assert agent.agent.dataplane.routing.routes.whole.times == 2  # the stream needed no third reading
            read, found, rules = dumps(agent), list(calculated), input_rules()
            judged.clear()
            for value in (DROP, RETURN):
                await agent.stream.put(action(value))
                await agent.until(lambda value=value: host_action(agent) == value, "the setting")
                await agent.until(lambda rules=rules: input_rules() != rules, "other rules")
                rules = input_rules()
            assert value.lower() in rules[0]
            await agent.quiet()
            assert (dumps(agent), calculated) == (read, found)
            assert {thing.kind for thing in judged} == {Kind.FELIX_CONFIGURATION}
            assert len(agent.events("settings changed")) == 3
            assert agent.agent.dataplane.plan() == []

    asyncio.run(scenario())


def test_settings_that_change_are_told_in_the_words_of_their_authors(broker: Broker) -> None:
    wanted = {"externalNodesList": ["10.100.0.1", "fd00:64::/64"], "routeRefreshInterval": "45s", "ipv6Support": False}
    said = {
        "ExternalNodesCIDRList": "10.100.0.1/32,fd00:64::/64",
        "RouteRefreshInterval": "45s",
        "Ipv6Support": "false",
    }

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent, felix_configuration("default", **wanted))
            await agent.until(lambda: agent.events("settings changed", **said), "the settings")

    asyncio.run(scenario())


def _in_the_stream(attribute: str) -> str:
    name = DECLARATIONS[attribute].name
    return name[0].lower() + name[1:]


OTHER_OWNERSHIP: dict[str, Any] = {
    "deviceRouteProtocol": 223,
    "interfacePrefix": "cali,veth",
    "removeExternalRoutes": False,
}


@pytest.mark.parametrize("name", OTHER_OWNERSHIP)
def test_a_setting_that_decides_what_is_ours_reads_the_kernel_once(broker: Broker, name: str) -> None:
    assert OTHER_OWNERSHIP.keys() == {_in_the_stream(name) for name in Ownership.__struct_fields__}

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent)
            run("ip", "link", "add", "veth1", "type", "veth", "peer", "name", "veth1p")
            await compared(agent)
            before = agent.agent.dataplane.routing.routes.whole.times
            await agent.stream.put(felix_configuration("default", **{name: OTHER_OWNERSHIP[name]}))
            await agent.until(lambda: agent.events("settings changed"), "the setting")
            await agent.until(lambda: agent.agent.dataplane.is_settled, "its end")
            await agent.quiet()
            assert agent.agent.dataplane.routing.routes.whole.times == before + 1
            assert agent.agent.dataplane.plan() == []
            protocol = agent.agent.settings.device_route_protocol
            assert {line.split()[0] for line in of_protocol(protocol)} == {"10.48.0.1", "fd00:48::1"}

    asyncio.run(scenario())


def test_external_routes_are_ours_as_soon_as_the_setting_says_so(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("felixpy.dataplane.routes.GRACE_SECONDS", 0.0)

    def external() -> str:
        return run("ip", "route", "show", "198.18.0.0/24")

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent, felix_configuration("default", removeExternalRoutes=False))
            run("ip", "route", "add", "198.18.0.0/24", "dev", "cali1", "proto", "static")
            await agent.quiet()
            assert external()
            await agent.stream.put(felix_configuration("default", removeExternalRoutes=True))
            await agent.until(lambda: not external(), "the end of the external route")

    asyncio.run(scenario())


def test_a_reading_that_failed_is_done_again_with_the_new_settings(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("felixpy.agent.comparisons.RETRY_SECONDS", 0.1)
    read, failures = Dataplane.read, [OSError("no buffer"), OSError("no buffer")]

    async def failing(self: Dataplane) -> Any:
        if failures:
            raise failures.pop()
        return await read(self)

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent)
            before = of_protocol(222)
            with monkeypatch.context() as patched:
                patched.setattr(Dataplane, "read", failing)
                await agent.stream.put(felix_configuration("default", deviceRouteProtocol=223))
                await agent.until(lambda: of_protocol(223) == before, "the routes of the new protocol")
            assert of_protocol(222) == set()
            assert not failures
            assert agent.events("settings or host cannot be taken; will be tried again each second: over", times=2)

    asyncio.run(scenario())


IPV6_OFF = felix_configuration("default", ipv6Support=False)


def six() -> list[str]:
    """What is ours of IPv6, whatever the back-end."""
    found = run("ip", "-6", "route", "show", "table", "all", "proto", "222").splitlines()
    found += [line for line in run("nft", "list", "tables").splitlines() if line == "table ip6 felixpy"]
    found += [line for line in run("ipset", "list", "-name").splitlines() if line.startswith("fpy6-")]
    with contextlib.suppress(FileNotFoundError):
        if Path("/proc/net/ip6_tables_names").read_text():
            found += [line for line in iptables_save("ip6tables-legacy-save").splitlines() if "fpy-" in line]
    return found + [line for line in iptables_save("ip6tables-nft-save").splitlines() if "fpy-" in line]


def four() -> list[str]:
    texts = run("ip", "route", "show", "proto", "222"), run("iptables-nft-save"), run("ipset", "save")
    kept = [line for line in "\n".join(texts).splitlines() if "6-" not in line and not line.startswith(("#", ":"))]
    tables = run("nft", "-s", "list", "ruleset").partition("table ip6 ")[0]
    return [*kept, *tables.splitlines()]


@pytest.mark.parametrize("environ", [NFTABLES, LEGACY, NFT], ids=["nftables", "legacy", "nft"])
def test_ipv6_switched_off_and_on_while_running(broker: Broker, environ: Mapping[str, str]) -> None:
    async def scenario() -> None:
        async with running(broker, environ) as agent:
            await start(agent)
            before = six()
            assert len(before) >= 2
            ipv4 = four()
            await agent.stream.put(IPV6_OFF)
            await agent.until(lambda: not six(), "the end of all IPv6 state")
            assert four() == ipv4
            await agent.until(lambda: list(agent.stream.status[NODE]["families"]) == ["4"], "IPv4 alone in the status")
            assert agent.metric("felixpy_ready", family="IPv6") == 0
            assert agent.metric("felixpy_ready", family="IPv4") == 1
            await agent.stream.raw(topic_of(IPV6_OFF), b"")
            await agent.until(lambda: six() == before, "the IPv6 state again")
            assert four() == ipv4
            await agent.until(lambda: agent.metric("felixpy_ready", family="IPv6") == 1, "ready again")

    asyncio.run(scenario())


def backend(mode: str, iptables: str) -> Object:
    return felix_configuration("default", nftablesMode=mode, iptablesBackend=iptables)


def in_use() -> set[str]:
    """Back-ends that hold rules of ours."""
    found = {"nftables"} if "felixpy" in run("nft", "list", "tables") else set()
    for variant in ("legacy", "nft"):
        if all("fpy-" in iptables_save(f"{tool}-{variant}-save") for tool in ("iptables", "ip6tables")):
            found.add(variant)
    return found


def ipsets() -> list[str]:
    return run("ipset", "list", "-name").splitlines()


def test_another_back_end_takes_over_and_the_old_one_goes(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker, {}) as agent:
            await start(agent, backend("Enabled", "Auto"))
            await agent.until(lambda: in_use() == {"nftables"}, "nftables")
            for mode, iptables, name in (
                ("Disabled", "NFT", "nft"), ("Disabled", "Legacy", "legacy"), ("Enabled", "Legacy", "nftables"),
            ):  # fmt: skip
                await agent.stream.put(backend(mode, iptables))
                await agent.until(lambda name=name: in_use() == {name}, f"{name} alone")
                assert routes() == {"10.48.0.1", "fd00:48::1"}
                kept = 0 if name == "nftables" else 2 * len(STANDING_SETS)
                await agent.until(lambda kept=kept: len(ipsets()) == kept, "the sets of this back-end alone")
                await agent.until(lambda: agent.stream.status[NODE]["state"] == "in-sync", "in-sync again")
            assert agent.events("leftovers of another back-end or family remain") == []

    asyncio.run(scenario())


def first_and_last_jumps() -> tuple[bool, bool]:
    rules = [line for line in run("iptables-nft", "-S", "FORWARD").splitlines() if line.startswith("-A")]
    return "fpy-" in rules[0], "fpy-" in rules[-1]


def test_chain_insert_mode_changes_while_running(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker, NFT) as agent:
            run("iptables-nft", "-A", "FORWARD", "-m", "comment", "--comment", "foreign", "-j", "RETURN")
            await start(agent)
            await agent.until(lambda: first_and_last_jumps() == (True, False), "our jump at the head")
            await agent.stream.put(felix_configuration("default", chainInsertMode="Append"))
            await agent.until(lambda: first_and_last_jumps() == (False, True), "our jump at the end")

    asyncio.run(scenario())


def test_settings_that_decide_what_is_ours_take_effect_live(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent)
            await agent.stream.put(felix_configuration("default", interfacePrefix="veth"))
            await agent.endpoint_is("good", "error", "cali1 does not start with an InterfacePrefix (veth)")
            await agent.until(lambda: routes() == set(), "the end of its routes")
            assert members("from-workload") == set()
            settings: dict[str, Any] = {"interfacePrefix": "veth,cali", "logSeverityScreen": "ERROR"}
            await agent.stream.put(felix_configuration("default", **settings))
            await agent.endpoint_is("good", "up")
            assert routes() == {"10.48.0.1", "fd00:48::1"}
            assert agent.agent.settings.log_severity_screen == "ERROR"

    asyncio.run(scenario())
