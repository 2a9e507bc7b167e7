"""Whatever arrives: reported with key and reason, once in the log, in metric and status; gone when it is mended.

A valid endpoint beside it keeps its kernel state: nothing at all is written for what cannot be used.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from felixpy.agent import outcome
from felixpy.demo.resources import Object, block, ip_pool, v3
from tests.agent.bench import (
    GOOD,
    NODE,
    POOLS,
    ROOT,
    Running,
    dump,
    endpoint,
    members,
    routes,
    running,
    state_of,
    topic_of,
)
from tests.broker import Broker
from tests.kernel import ip, pairs, run


def spec(**changes: Any) -> Object:
    return endpoint("bad", 2, **changes)


ENDPOINTS: dict[str, tuple[bytes | Object, str]] = {
    "broken-json": (b'{"apiVersion": "projectcalico.org/v3",', "not JSON"),
    "not-utf8": (b'{"kind": "\xff\xfe"}', "not UTF-8"),
    "a-list": (b"[1, 2]", "is not an object"),
    "another-object": (json.dumps(GOOD).encode(), "the object is WorkloadEndpoint default/good"),
    "another-kind": (ip_pool("another-kind", "10.0.0.0/8"), "another kind"),
    "deeply-nested": (b"[" * 100_000 + b"]" * 100_000, "nested"),
    "number-for-text": (spec(interfaceName=7), "spec.interfaceName"),
    "text-for-list": (spec(ipNetworks="10.48.0.2/32"), "spec.ipNetworks"),
    "network-for-address": (spec(ipNetworks=["10.48.0.2/24"]), "must be a single address"),
    "no-interface": (spec(interfaceName=None), "spec.interfaceName: is missing"),
    "v4-gateway-for-v6": (spec(ipv6Gateway="10.48.0.1"), "spec.ipv6Gateway: 10.48.0.1 is not an IPv6 address"),
    "interface-of-16": (spec(interfaceName="cali567890123456"), "at most 15 characters"),
    "mebibyte": (spec(labels={"a": "x" * (1 << 20)}), "bytes are more than the 1048576"),
    "many-mebibytes": (spec(labels={"a": "x" * (8 << 20)}), "bytes are more than the 1048576"),
    "uplink": (spec(interfaceName="eth0"), "eth0 does not start with an InterfacePrefix (cali)"),
    "of-another-node": (spec(node="n2"), "spec.node: the topic is for node n1, the object for n2"),
}
SHARED: dict[str, tuple[Object, str]] = {
    "host-bits": (ip_pool("host-bits", "10.50.0.1/16"), "host bits"),
    "wrong-type": (ip_pool("wrong-type", "10.50.0.0/16", natOutgoing=[1]), "spec.natOutgoing"),
    "ipip-v6": (ip_pool("ipip-v6", "fd00:50::/64", ipipMode="Always"), "ipip"),
    "node-address": (v3("Node", "node-address", {"bgp": {"ipv4Address": "192.0.2.300/24"}}), "192.0.2.300"),
    "settings": ({**v3("FelixConfiguration", "settings", {}), "spec": [1]}, "spec"),
}


async def start(agent: Running) -> str:
    """Bring the valid endpoint up; returns the kernel's state."""
    await agent.stream.put(*POOLS, GOOD)
    await agent.in_sync()
    await agent.endpoint_is("good", "up")
    await agent.quiet()
    return dump()


def said_of(agent: Running, key: str) -> str:
    """The one report on an object."""
    events = agent.events("problem", object=key)
    assert len(events) == 1, (key, events)
    reason = str(events[0]["reason"])
    assert "\n" not in reason
    assert len(reason) < 500
    return reason


def payload_of(name: str, content: bytes | Object) -> bytes:
    if isinstance(content, bytes):
        return content
    return json.dumps({**content, "metadata": {**content["metadata"], "name": name}}).encode()


def test_bad_endpoints_are_reported_once_and_disturb_nobody(broker: Broker) -> None:
    pairs(*(f"cali{number}" for number in range(10, 10 + len(ENDPOINTS))))

    async def scenario() -> None:
        async with running(broker) as agent:
            before = await start(agent)
            written = agent.metric("felixpy_kernel_writes_total")
            for _ in range(2):
                for name, (content, _) in ENDPOINTS.items():
                    await agent.stream.raw(f"wep/{NODE}/default/{name}", payload_of(name, content))
            for name, (_, reason) in ENDPOINTS.items():
                await agent.endpoint_is(name, "error", reason)
                assert reason in said_of(agent, f"WorkloadEndpoint default/{name}")
            assert agent.metric("felixpy_problems", kind="WorkloadEndpoint") == len(ENDPOINTS)
            assert dump() == before
            assert agent.metric("felixpy_kernel_writes_total") == written
            await agent.until(lambda: agent.stream.status[NODE]["problem_count"] == len(ENDPOINTS), "the count")
            assert agent.stream.status[NODE]["problems"][0].startswith("WorkloadEndpoint default/a-list: ")
            await mend(agent)

    asyncio.run(scenario())


async def mend(agent: Running) -> None:
    """Replace every bad endpoint by a good one, the last one by nothing."""
    *replaced, deleted = ENDPOINTS
    for number, name in enumerate(replaced, 10):
        await agent.stream.put(endpoint(name, number))
    await agent.stream.raw(f"wep/{NODE}/default/{deleted}", b"")
    for name in replaced:
        await agent.endpoint_is(name, "up")
    await agent.until(lambda: f"{NODE}/wep/default/{deleted}" not in agent.stream.status, "the end of a status topic")
    assert agent.metric("felixpy_problems", kind="WorkloadEndpoint") == 0
    for name in ENDPOINTS:
        assert len(agent.events("problem solved", object=f"WorkloadEndpoint default/{name}")) == 1
        said_of(agent, f"WorkloadEndpoint default/{name}")
    await agent.until(lambda: agent.stream.status[NODE]["problems"] == [], "a status without problems")
    assert {f"cali{number}" for number in range(10, 10 + len(replaced))} < {
        member.rpartition(" . ")[2].strip('"') for member in members("from-workload")
    }


def test_a_node_that_is_known_by_its_blocks_first_is_no_problem(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker says in no order what comes together; what lasts is told."""
    before, late = block("10.48.1.0/26", "n2"), block("10.48.2.0/26", "n3")
    own, other = (v3("Node", f"n{n}", {"bgp": {"ipv4Address": f"192.0.2.{n}/24"}}) for n in (1, 2))

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent)
            await agent.stream.put(own)
            await agent.quiet()
            with monkeypatch.context() as patch:
                patch.setattr(outcome, "TELLING_SECONDS", 1e6)
                await agent.stream.put(before)
                await agent.until(lambda: agent.agent.store.blocks, "the block")
                await agent.quiet()
                assert agent.agent.calculation.problems, "it is one until its node is known"
                await agent.stream.put(other)
                await agent.until(lambda: "10.48.1.0/26" in routes(), "the route")
                await agent.quiet()
                agent.agent.outcome.tell_others(now=True)
            assert not agent.events("problem", object="Node n2")
            await agent.stream.put(late)
            await agent.until(lambda: agent.events("problem", object="Node n3"), "word of a node that nobody knows")

    asyncio.run(scenario())


def test_bad_shared_objects_are_reported_once_and_disturb_nobody(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker) as agent:
            before = await start(agent)
            for document, _ in SHARED.values():
                await agent.stream.put(document)
            for name, (document, reason) in SHARED.items():
                key = f"{document['kind']} {name}"
                await agent.until(lambda key=key: agent.events("problem", object=key), f"the report of {key}")
                assert reason in said_of(agent, key).lower().replace("natoutgoing", "natOutgoing")
            assert agent.metric("felixpy_problems", kind="IPPool") == 3
            assert dump() == before
            for document, _ in SHARED.values():
                await agent.stream.raw(topic_of(document), b"")
            await agent.until(lambda: not agent.problems, "the end of all problems")
            assert agent.metric("felixpy_problems", kind="IPPool") == 0
            assert len(agent.events("problem solved")) == len(SHARED)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "manifest",
    [b'{"counts":{"wep":1' + b"0" * 400 + b"}}", b'{"counts":{},"later":' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
    ids=["long number", "deeply nested"],
)
def test_a_manifest_that_none_can_be_is_told_and_disturbs_nobody(broker: Broker, manifest: bytes) -> None:
    async def scenario() -> None:
        async with running(broker) as agent:
            before = await start(agent)
            await agent.stream.raw(f"sync/node/{NODE}", manifest)
            reason = f"manifest sync/node/{NODE} cannot be used"
            await agent.until(lambda: reason in agent.stream.status[NODE]["reason"], "the reason")
            assert agent.agent.metrics.text()
            assert agent.stream.status[f"{NODE}/wep/default/good"]["state"] == "up"
            assert dump() == before

    asyncio.run(scenario())


def test_topics_longer_than_any_name_are_named_and_disturb_nobody(broker: Broker) -> None:
    """Their status would have a topic that MQTT does not have."""
    names = "%" * 30_000, "a" * (65535 - len(f"{ROOT}/wep/{NODE}/default/"))

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent)
            before = dump(sysctls=False)
            for name in names:
                await agent.stream.raw(f"wep/{NODE}/default/{name}", b"{}")
            await agent.until(lambda: len(agent.events("ignored")) == len(names), "both names")
            await agent.quiet()
            assert all(len(event["what"]) < 100 for event in agent.events("ignored"))
            assert agent.problems == {}
            for name in names:
                await agent.stream.raw(f"wep/{NODE}/default/{name}", b"")
            await agent.stream.put(endpoint("after", 2))
            await agent.endpoint_is("after", "up")
            await agent.stream.raw(topic_of(endpoint("after", 2)), b"")
            await agent.until(lambda: f"{NODE}/wep/default/after" not in agent.stream.status, "the end of a status")
            await agent.quiet()
            assert dump(sysctls=False) == before

    asyncio.run(scenario())


def test_two_endpoints_with_one_address_the_youngest_has_it_and_the_other_keeps_the_rest(broker: Broker) -> None:
    thief = endpoint("thief", 2, ipNetworks=["10.48.0.1/32", "10.48.0.2/32"])

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent)
            before = state_of("cali1")
            await agent.stream.put(thief)
            await agent.endpoint_is("thief", "error", "10.48.0.1/32 is already used by WorkloadEndpoint default/good")
            await agent.quiet()
            assert members("from-workload") == {
                '10.48.0.1 . "cali1"', 'fd00:48::1 . "cali1"', '10.48.0.2 . "cali2"',
            }  # fmt: skip
            assert routes() == {"10.48.0.1", "10.48.0.2", "fd00:48::1"}
            assert state_of("cali1") == before
            assert agent.events("problem", object="WorkloadEndpoint default/good") == []
            await agent.stream.raw(topic_of(GOOD), b"")
            await agent.endpoint_is("thief", "up")
            assert members("from-workload") == {'10.48.0.1 . "cali2"', '10.48.0.2 . "cali2"'}
            assert "dev cali2" in run("ip", "route", "show", "10.48.0.1")

    asyncio.run(scenario())


def test_two_endpoints_with_one_interface_the_first_by_name_has_it(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker) as agent:
            before = await start(agent)
            await agent.stream.put(endpoint("rival", 2, interface="cali1"))
            await agent.endpoint_is(
                "rival", "error", "interface cali1 is already used by WorkloadEndpoint default/good"
            )
            await agent.quiet()
            assert dump() == before
            await agent.stream.raw(topic_of(GOOD), b"")
            await agent.endpoint_is("rival", "up")
            assert routes() == {"10.48.0.2", "fd00:48::2"}
            assert agent.metric("felixpy_problems", kind="WorkloadEndpoint") == 0

    asyncio.run(scenario())


def test_an_interface_that_does_not_exist_yet_is_waited_for(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent)
            before = state_of("cali1")
            await agent.stream.put(endpoint("early", 9))
            await agent.endpoint_is("early", "waiting", "interface cali9 does not exist")
            await agent.quiet()
            assert said_of(agent, "WorkloadEndpoint default/early") == "interface cali9 does not exist"
            assert agent.metric("felixpy_problems", kind="WorkloadEndpoint") == 1
            assert routes() == {"10.48.0.1", "fd00:48::1"}
            assert state_of("cali1") == before
            pairs("cali9")
            await agent.endpoint_is("early", "up")
            assert routes() == {"10.48.0.1", "fd00:48::1", "10.48.0.9", "fd00:48::9"}
            assert agent.metric("felixpy_problems", kind="WorkloadEndpoint") == 0
            ip("link del cali9")
            await agent.endpoint_is("early", "waiting", "interface cali9 does not exist")
            pairs("cali9")
            await agent.endpoint_is("early", "up")
            assert routes() == {"10.48.0.1", "fd00:48::1", "10.48.0.9", "fd00:48::9"}
            assert state_of("cali1") == before

    asyncio.run(scenario())


@pytest.mark.parametrize("is_late", [False, True], ids=["interface goes later", "interface is gone"])
def test_the_interface_of_a_workload_that_is_being_deleted_may_go(broker: Broker, is_late: bool) -> None:
    """Calico's plugin takes a pod's interface away before the API server forgets the pod."""
    leaving = endpoint("leaving", 9)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:06Z"

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent)
            pairs("cali9")
            await agent.stream.put(endpoint("leaving", 9))
            await agent.endpoint_is("leaving", "up")
            if is_late:
                ip("link del cali9")
                await agent.endpoint_is("leaving", "waiting", "interface cali9 does not exist")
            told = len(agent.log)
            await agent.stream.put(leaving)
            if is_late:
                await agent.until(lambda: not agent.problems, "the end of the problem")
            else:
                await agent.quiet()
                ip("link set cali9 down")
                await agent.endpoint_is("leaving", "waiting", "interface cali9 is down")
                ip("link del cali9")
            await agent.endpoint_is("leaving", "waiting", "interface cali9 does not exist")
            await agent.quiet()
            assert agent.problems == {}
            assert agent.metric("felixpy_problems", kind="WorkloadEndpoint") == 0
            assert [each for each in agent.log[told:] if each["log_level"] == "warning"] == []
            assert routes() == {"10.48.0.1", "fd00:48::1"}

            leaving["spec"]["interfaceName"] = "cali1"  # what is wrong otherwise is told
            await agent.stream.put(leaving)
            await agent.endpoint_is("leaving", "error", "interface cali1 is already used")
            await agent.until(lambda: agent.problems, "the problem")

    asyncio.run(scenario())


def test_an_endpoint_that_moves_to_another_node_and_back(broker: Broker) -> None:
    here, there = endpoint("mover", 2), endpoint("mover", 2, node="n2")

    async def scenario() -> None:
        async with running(broker) as agent:
            await start(agent)
            before = dump(sysctls=False)  # what stood there before is unknown, so interface settings stay
            await agent.stream.put(here)
            await agent.endpoint_is("mover", "up")
            await agent.stream.put(there)
            await agent.stream.raw(topic_of(here), b"")
            await agent.until(lambda: f"{NODE}/wep/default/mover" not in agent.stream.status, "the end of its status")
            await agent.quiet()
            assert dump(sysctls=False) == before
            await agent.stream.put(here)
            await agent.stream.raw(topic_of(there), b"")
            await agent.endpoint_is("mover", "up")
            assert routes() == {"10.48.0.1", "fd00:48::1", "10.48.0.2", "fd00:48::2"}

    asyncio.run(scenario())


def test_unknown_kinds_fields_and_topics_are_counted_and_named_once(broker: Broker) -> None:
    policy = v3("GlobalNetworkPolicy", "p", {"selector": "all()"})

    async def scenario() -> None:
        async with running(broker) as agent:
            before = await start(agent)
            for _ in range(2):
                await agent.stream.raw("wep/n1/default/strange/deeper", json.dumps(policy).encode())
            await agent.stream.put(ip_pool("extra", "10.48.0.0/24", colour="red", natOutgoing=True))
            await agent.until(lambda: len(agent.events("ignored")) == 2, "both names")
            await agent.quiet()
            assert {event["what"] for event in agent.events("ignored")} == {
                "topic wep/n1/default/strange/deeper", "IPPool field spec.colour",
            }  # fmt: skip
            assert agent.metric("felixpy_ignored_total", what="IPPool field spec.colour") == 1
            assert agent.problems == {}
            assert dump() == before  # a pool inside another one changes no set

    asyncio.run(scenario())
