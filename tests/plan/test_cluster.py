"""A change asked of all agents over a real broker: who answers is added up, who does not is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from felixpy.demo.patience import stretched
from felixpy.mqtt import topics
from felixpy.mqtt.asking import Answers
from felixpy.mqtt.reading import Message
from felixpy.plan import cluster
from felixpy.sources.questions import Questions
from tests.agent.bench import NFTABLES, POOLS, ROOT, endpoint
from tests.broker import Broker
from tests.cli.command import agent, at, felixpy, sentence
from tests.kernel import run

POLICY = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: shut}
spec: {selector: all(), types: [Ingress]}
"""


def publish(broker: Broker, topic: str, payload: str) -> None:
    run("mosquitto_pub", "-p", str(broker.port), "-q", "1", "-r", "-t", f"{ROOT}/{topic}", "-m", payload)


def test_agents_answer_and_those_that_do_not_are_named(broker: Broker, tmp_path: Path) -> None:
    env = at(broker, **NFTABLES)
    policy, objects = tmp_path / "policy.yaml", tmp_path / "objects.json"
    policy.write_text(POLICY)
    objects.write_text(json.dumps([*POOLS, endpoint("web", 1)]))
    assert felixpy("apply", "-f", str(objects), env=env).code == 0
    assert "knows no agent" in sentence(felixpy("apply", "--plan", "-f", str(policy), env=env))
    with agent(env, tmp_path / "log"):
        done = felixpy("apply", "--plan", "-f", str(policy), "--timeout", "600", env=env)
        assert (done.code, done.err) == (2, ""), done
        assert done.out.startswith("1 of 1 agent answered what this change would do:\n")
        assert done.out.endswith("Nothing was written.\n")
        publish(broker, topics.status_topic("n2"), '{"state": "in-sync"}')
        publish(broker, topics.status_topic("n3"), '{"state": "offline"}')
        waits = str(math.ceil(stretched(5)))  # n2 never answers, so all of it is waited
        done = felixpy("apply", "--plan", "-f", str(policy), "-o", "json", "--timeout", waits, env=env)
        assert done.code == 1, done
        said = done.json
        assert (said["silent"], said["offline"], said["refused"]) == (["n2"], ["n3"], {})
        (one,) = said["nodes"].values()
        assert (one["node"], one["kernel"]["count"] > 0) == ("n1", True)
        assert one["classes"][0]["names"] == ["default/web"]
        assert felixpy("get", "GlobalNetworkPolicy", env=env).out.strip() == ""
        assert felixpy("delete", "--plan", "-f", str(objects), "--timeout", "2", env=env).code == 1


def message(response: str, payload: bytes = b"x") -> Message:
    return Message(f"{ROOT}/cmd/n1/plan", payload, [], response, b"mark")


@pytest.mark.parametrize(
    "response",
    ["", "reply/a/n1", f"{ROOT}/reply/a/n2", f"{ROOT}/reply/a/n1/more", f"{ROOT}/status/n1", f"{ROOT}/reply//n1",
     f"{ROOT}/wep/n1/default/web", f"{ROOT}x/reply/a/n1"],
)  # fmt: skip
def test_an_answer_goes_nowhere_but_to_the_place_for_answers_of_this_node(response: str) -> None:
    questions = Questions(ROOT, "n1")

    async def never(data: bytes) -> bytes:
        raise AssertionError(data)

    questions.answering = {"plan": never}
    questions._connection = object()  # type: ignore[assignment]
    assert questions.take("plan", message(response)) is False


def test_names_of_topics() -> None:
    assert topics.verb_of("cmd/n%2F1/plan", "n/1") == "plan"
    assert topics.verb_of("cmd/n2/plan", "n1") is None
    assert topics.replying_node(topics.reply_topic("a/b", "n/1")) == "n/1"
    assert topics.is_reply_of(topics.reply_topic("a/b", "n/1"), "n/1")
    assert topics.status_node("status/n%2F1") == "n/1"
    assert topics.status_node("status/n1/wep/default/web") is None


def said(node: str, *pairs: dict[str, Any]) -> dict[str, Any]:
    sums = {
        effect: {"pairs": sum(one["effect"] == effect for one in pairs), "live": 1, "unanswered": 0, "closed": 0}
        for effect in ("cut", "opened")
    }
    connections = {"read": 1, "judged": 1, "left_out": 0, "decided_by_others": 0, "pairs": list(pairs), **sums}
    kernel = {"count": 0, "add": 0, "change": 0, "remove": 0, "operations": []}
    return {"node": node, "objects": [], "settings": {}, "problems": {}, "kernel": kernel, "classes": [],
            "connections": connections, "not_judged": []}  # fmt: skip


def pair(effect: str, source: str, by: str) -> dict[str, Any]:
    passes, stops = {"allowed": True, "by": ["a"], "decisions": []}, {"allowed": False, "by": [by], "decisions": []}
    before, after = (passes, stops) if effect == "cut" else (stops, passes)
    return {"effect": effect, "at_once": False, "source": source, "source_name": "x/a", "destination": "10.0.0.9",
            "destination_name": "", "protocol": 6, "port": 80, "icmp": None, "live": 1, "unanswered": 0, "closed": 0,
            "before": before, "after": after}  # fmt: skip


def test_a_pair_that_two_nodes_tell_of_is_told_once_and_the_gravest_node_decides() -> None:
    shared = pair("cut", "10.0.0.1", "end of tier default (ingress)")
    answers = Answers({"n1": said("n1", shared), "n2": said("n2", shared, pair("opened", "10.0.0.2", "b"))})
    text = [line.text for line in cluster.as_text(answers)]
    assert [line.split() for line in text if line.startswith("  n")] == [
        ["node", "cut", "opened", "asked", "otherwise", "kernel"],
        ["n2", "1", "pair,", "1", "live", "1", "pair,", "1", "live", "-", "-"],
        ["n1", "1", "pair,", "1", "live", "-", "-", "-"],
    ]
    assert sum("10.0.0.1 x/a → 10.0.0.9" in line for line in text) == 1
    assert "      on   n1, n2" in text
    assert max(map(len, text)) <= 80
    assert cluster.exit_code(answers) == 3
    answers.silent = ("n3",)
    assert cluster.exit_code(answers) == 3
    nothing = Answers({"n1": said("n1")}, silent=("n3",))
    assert cluster.exit_code(nothing) == 1
    strange = Answers({"n1": {"other": 1}})
    cluster.refuse_strange(strange)
    assert (strange.said, list(strange.refused)) == ({}, ["n1"])
