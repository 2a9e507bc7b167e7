"""apply, get and delete beside a running agent, with manifests as users paste them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import yaml

from tests.agent.bench import GOOD, NODE, members, routes, running, stream_to
from tests.broker import Broker
from tests.cli.command import Done, at, felixpy, sentence
from tests.kernel import run

SAMPLES = Path(__file__).parents[1] / "model" / "samples"


async def command(*arguments: str, broker: Broker) -> Done:
    """Beside the agent of this process."""
    return await asyncio.to_thread(felixpy, *arguments, env=at(broker))


def test_the_operators_dual_stack_installation(broker: Broker) -> None:
    async def scenario() -> None:
        async with running(broker) as agent:
            done = await command("apply", "-f", str(SAMPLES / "installation-dual-stack.yaml"), broker=broker)
            assert (done.code, done.err) == (0, "")
            assert done.out == "2 published, 0 unchanged, 0 deleted\n"
            await agent.in_sync()
            await agent.until(lambda: members("masq-pools") == {"10.48.0.0/21", "2001::/64"}, "both pools")
            assert members("pools") == {"10.48.0.0/21", "2001::/64"}
            ((key, reason),) = agent.problems.items()
            assert key == f"Node {NODE}", "which has no tunnel without its address"
            assert "IPIP" in reason or "tunl0" in reason, reason
            assert len(agent.events("problem", object=key)) == 1
            await agent.until(lambda: agent.stream.status[NODE]["problem_count"] == 1, "the problem in the status")
            assert agent.stream.status[NODE]["problems"] == [f"{key}: {reason}"]

    asyncio.run(scenario())


def test_a_mixed_file_good_documents_on_request(broker: Broker) -> None:
    file = str(SAMPLES / "mixed.yaml")

    async def scenario() -> None:
        async with running(broker) as agent:
            refused = await command("apply", "-f", file, broker=broker)
            assert refused.code == 1
            assert refused.err.startswith("felixpy: nothing was sent: ")
            assert f"{file}, document 2: IPPool pods-v4 spec.cidr: " in refused.err
            done = await command("apply", "--skip-bad", "-f", file, broker=broker)
            assert done.code == 0
            assert "document 2: IPPool pods-v4 spec.cidr: " in done.err
            await agent.in_sync()
            await agent.until(lambda: members("masq-pools") == {"fd20::/112"}, "the canonical pool")

    asyncio.run(scenario())


def test_apply_get_delete_of_an_endpoint(broker: Broker, tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(yaml.safe_dump(GOOD))

    async def scenario() -> None:
        async with running(broker) as agent:
            assert (await command("apply", "-f", str(file), broker=broker)).out.startswith("1 published")
            await agent.endpoint_is("good", "up")
            assert routes() == {"10.48.0.1", "fd00:48::1"}
            got = await command("get", "WorkloadEndpoint", "good", "-n", "default", broker=broker)
            assert yaml.safe_load(got.out) == GOOD
            again = await command("apply", "-f", str(file), broker=broker)
            assert again.out == "0 published, 1 unchanged, 0 deleted\n"
            deleted = await command("delete", "-f", str(file), broker=broker)
            assert deleted.out == "1 deleted\n"
            await agent.until(lambda: routes() == set(), "the end of its routes")
            missing = await command("get", "WorkloadEndpoint", "good", broker=broker)
            assert (missing.code, missing.err) == (1, "felixpy: not found\n")
            assert agent.agent.stream.state == "in-sync"

    asyncio.run(scenario())


def test_get_lists_what_nests_too_deeply_as_text(broker: Broker) -> None:
    text = '{"a":' + "[" * 500 + "]" * 500 + "}"

    async def scenario() -> None:
        async with stream_to(broker) as stream:
            await stream.raw("ippool/deep", text.encode())
            for form, read in (("yaml", lambda out: [*yaml.safe_load_all(out)]), ("json", lambda out: out["items"])):
                done = await command("get", "-o", form, broker=broker)
                assert (done.code, done.err) == (0, "")
                assert read(done.json if form == "json" else done.out) == [text]

    asyncio.run(scenario())


BAD = """
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: bad, namespace: default}
---
apiVersion: projectcalico.org/v3
kind: BlockAffinity
metadata: {name: n1-10-48-0-0-26}
spec: {node: n1}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: bad}
spec: {cidr: nonsense}
"""


def test_what_was_published_by_hand_and_is_invalid_can_be_deleted_by_what_get_prints(broker: Broker) -> None:
    topics = ("wep/n1/default/bad", "affinity/n1/10-48-0-0-26", "ippool/bad")

    async def scenario() -> None:
        async with stream_to(broker) as stream:
            for topic, document in zip(topics, yaml.safe_load_all(BAD), strict=True):
                await stream.raw(topic, json.dumps(document).encode())
            await stream.raw("ippool/other", b'{"keep": 1}')
            got = await command("get", broker=broker)
            printed = "---\n".join(text for text in got.out.split("---\n") if "bad" in text or "26" in text)
            done = await asyncio.to_thread(felixpy, "delete", "-f", "-", env=at(broker), stdin=printed)
            assert (done.code, done.out, done.err) == (0, "3 deleted\n", "")
            assert (await command("get", broker=broker)).out == "keep: 1\n"

    asyncio.run(scenario())


def test_deleting_what_is_not_there_is_an_error_unless_told(broker: Broker, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(f"{BAD}---\n{yaml.safe_dump(GOOD)}")
    assert felixpy("apply", "--skip-bad", "-f", str(file), env=at(broker)).out.startswith("1 published")
    done = felixpy("delete", "-f", str(file), env=at(broker))
    assert (done.code, done.out) == (1, "1 deleted\n")
    assert done.err.startswith("felixpy: not found: WorkloadEndpoint default/bad, ")
    assert felixpy("delete", "--ignore-not-found", "-f", str(file), env=at(broker)).code == 0
    file.write_text("kind: IPPool\napiVersion: projectcalico.org/v3\n")
    done = felixpy("delete", "-f", str(file), env=at(broker))
    assert (done.code, "nothing was sent" in done.err) == (1, True)


def test_what_files_say_is_compared_before_it_is_applied(broker: Broker, tmp_path: Path) -> None:
    file = tmp_path / "pool.yaml"
    pool = {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "one"}}
    file.write_text(yaml.safe_dump({**pool, "spec": {"cidr": "10.48.0.0/21"}}))
    env = at(broker)
    dry = felixpy("apply", "--dry-run", "-f", str(file), env=env)
    assert (dry.code, dry.err) == (0, "")
    assert dry.out == "ippool/one would be published\n1 would be published, 0 deleted; nothing was written\n"
    assert felixpy("get", "-o", "name", env=env).out == ""
    new = felixpy("diff", "-f", str(file), env=env)
    assert new.code == 1
    assert "+  cidr: 10.48.0.0/21" in new.out
    assert felixpy("apply", "-f", str(file), env=env).out == "1 published, 0 unchanged, 0 deleted\n"
    same = felixpy("diff", "-f", str(file), env=env)
    assert (same.code, same.out, same.err) == (0, "", "")
    assert felixpy("get", "pools", "-o", "name", env=env).out == "ippool/one\n"
    wide = [line.split() for line in felixpy("get", "ippools", "-o", "wide", env=env).out.splitlines()]
    assert wide == [
        ["KIND", "NAMESPACE", "NAME", "SPEC"],
        ["ippool", "one", "cidr=10.48.0.0/21"],
    ]
    file.write_text(yaml.safe_dump({**pool, "spec": {"cidr": "10.48.0.0/22"}}))
    changed = felixpy("diff", "-f", str(file), env=env)
    assert changed.code == 1
    assert "-  cidr: 10.48.0.0/21" in changed.out and "+  cidr: 10.48.0.0/22" in changed.out
    file.write_text("kind: [")
    assert felixpy("diff", "-f", str(file), env=env).code == 2


def test_kinds_have_short_names(broker: Broker) -> None:
    for name in ("wep", "WorkloadEndpoints", "block", "ipamblocks", "affinities", "FelixConfig", "node"):
        assert felixpy("get", name, "-o", "name", env=at(broker)).code == 0, name
    unknown = felixpy("get", "teapots", env=at(broker))
    assert unknown.code == 64
    assert "kind teapots is not one that felixpy knows: WorkloadEndpoint (wep), " in unknown.err


def test_default_pools_are_printed_for_families_that_have_none_and_published_once(broker: Broker) -> None:
    run("ip", "addr", "add", "192.168.5.1/24", "dev", "eth0")
    variables = at(broker, CALICO_IPV4POOL_VXLAN="CrossSubnet", CALICO_IPV6POOL_CIDR="fd00:48::/64")
    printed = felixpy("node", "--pools", env=variables)
    four, six = yaml.safe_load_all(printed.out)
    assert (four["metadata"]["name"], four["spec"]["cidr"]) == ("default-ipv4-ippool", "172.16.0.0/16"), "not its own"
    assert (four["spec"]["vxlanMode"], four["spec"]["natOutgoing"]) == ("CrossSubnet", True)
    assert (six["metadata"]["name"], six["spec"]["cidr"]) == ("default-ipv6-ippool", "fd00:48::/64")
    refused = sentence(felixpy("node", "--pools", env={**variables, "CALICO_IPV4POOL_BLOCK_SIZE": "9"}))
    assert refused == "felixpy: CALICO_IPV4POOL_BLOCK_SIZE='9' must be from 20 to 32\n"
    assert "there is no pool to make" in sentence(felixpy("node", "--pools", env=at(broker, NO_DEFAULT_POOLS="true")))
    assert felixpy("apply", "-f", "-", env=variables, stdin=printed.out).out == "2 published, 0 unchanged, 0 deleted\n"
    assert "there is no pool to make" in sentence(felixpy("node", "--pools", env=variables))
    assert felixpy("delete", "-f", "-", env=variables, stdin=yaml.safe_dump(six)).code == 0
    (again,) = yaml.safe_load_all(felixpy("node", "--pools", env=variables).out)
    assert again == six
