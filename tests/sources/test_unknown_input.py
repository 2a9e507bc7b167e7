"""``apply`` refuses what no agent takes, and says what no agent will act upon."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from felixpy.calc.unenforced import unenforced
from felixpy.model.documents import Document, load_text
from felixpy.mqtt.batch import BadBatch, prepare, prepare_deletion
from tests.broker import Broker
from tests.cli.command import at, felixpy
from tests.sources.stream_lab import retained

HEAD = "apiVersion: projectcalico.org/v3\nkind: {}\nmetadata: {{name: {}}}\nspec: {}\n"
POOL = HEAD.format("IPPool", "p", "{cidr: 10.0.0.0/16}")
UNKNOWN = {
    "a field": (HEAD.format("IPPool", "p", "{cidr: 10.0.0.0/16, natOutGoing: true}"), "spec.natOutGoing"),
    "of metadata": (POOL.replace("{name: p}", "{name: p, lables: {}}"), "metadata.lables"),
    "of the object": (POOL + "sepc: {}\n", "sepc"),
    "inside another": (HEAD.format("Node", "n", "{bgp: {ipv4address: 10.0.0.1/24}}"), "spec.bgp.ipv4address"),
    "in a list": (
        HEAD.format("WorkloadEndpoint", "w", "{node: n, interfaceName: cali1, ports: [{nam: x, port: 1}]}"),
        "spec.ports[0].nam",
    ),
    "in a rule": (
        HEAD.format("GlobalNetworkPolicy", "g", "{ingress: [{action: Allow, destination: {portZ: [80]}}]}"),
        "spec.ingress[0].destination.portZ: is not known",
    ),
    "of a rule that denies": (
        HEAD.format("GlobalNetworkPolicy", "g", "{egress: [{action: Deny, protokol: TCP}]}"),
        "spec.egress[0].protokol: is not known",
    ),
    "in a rule of Kubernetes": (
        HEAD.format("NetworkPolicy", "k", "{podSelector: {}, ingress: [{from: [{podSelecter: {}}]}]}").replace(
            "projectcalico.org/v3", "networking.k8s.io/v1"
        ),
        "spec.ingress[0].from[0].podSelecter: is not known",
    ),
    "in a rule of a Profile": (
        HEAD.format("Profile", "p", "{ingress: [{action: Allow, sorce: {}}]}"),
        "spec.ingress[0].sorce: is not known",
    ),
    "a setting": (HEAD.format("FelixConfiguration", "default", "{natPortRang: '1000:2000'}"), "natPortRang"),
    "a kind": (HEAD.format("NetworkPolcy", "x", "{}"), "kind NetworkPolcy"),
    "a kind of another group": (
        POOL.replace("projectcalico.org/v3", "example.org/v1"),
        "kind IPPool of example.org/v1",
    ),
}


def documents(text: str) -> list[Document]:
    found = list(load_text(f"{POOL.replace('name: p', 'name: good')}---\n{text}".encode(), "x.yaml"))
    return [one for one in found if isinstance(one, Document)]


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_nobody_knows_is_refused_with_its_place_and_passed_over_on_request(case: str) -> None:
    text, what = UNKNOWN[case]
    with pytest.raises(BadBatch) as caught:
        prepare(documents(text))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("x.yaml, document 2: ") and what in caught.value.problems[0]

    batch = prepare(documents(text), ignore_unknown=True)
    (told,) = batch.unknown
    assert told.startswith("x.yaml, document 2: ") and what in told
    is_kind = case.startswith("a kind")
    assert len(batch.entries) == (1 if is_kind else 2)
    assert batch.ignored == is_kind

    left = prepare(documents(text), skip_bad=True)
    assert (len(left.entries), len(left.problems)) == (1, 1)


def test_a_value_that_every_agent_refuses_is_refused_whatever_is_asked_for() -> None:
    text = HEAD.format("FelixConfiguration", "default", "{natPortRange: many, logSeverityScreen: Info}")
    for ignore_unknown in (False, True):
        with pytest.raises(BadBatch, match=r"x\.yaml, document 2: setting NATPortRange"):
            prepare(documents(text), ignore_unknown=ignore_unknown)


def test_a_configuration_for_no_node_is_refused() -> None:
    with pytest.raises(BadBatch, match="nodeSelector"):
        prepare(documents(HEAD.format("FelixConfiguration", "some", "{logSeverityScreen: Info}")))


def test_a_setting_without_effect_is_published_with_a_note() -> None:
    batch = prepare(documents(HEAD.format("FelixConfiguration", "default", "{bpfEnabled: true}")))
    assert len(batch.entries) == 2
    (note,) = batch.notes
    assert "bpfEnabled" in note and "no effect" in note


def test_to_delete_what_nobody_takes_is_an_error_unless_told() -> None:
    text = HEAD.format("NetworkPolcy", "x", "{}")
    with pytest.raises(BadBatch, match="kind NetworkPolcy"):
        prepare_deletion(documents(text))
    assert prepare_deletion(documents(text), ignore_unknown=True).ignored == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            HEAD.format("WorkloadEndpoint", "w", "{node: n, interfaceName: cali1, qosControls: {ingressBandwidth: 1}}"),
            "spec.qosControls",
        ),
    ],
)
def test_what_will_have_no_effect_is_said(text: str, said: str) -> None:
    document = documents(text)[1]
    assert document.resource is not None
    (told,) = unenforced(document.resource, document.object)
    assert said in told


def test_the_command_says_all_of_it(broker: Broker, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"{UNKNOWN['a field'][0]}---\n{UNKNOWN['a kind'][0]}")
    refused = felixpy("apply", "-f", str(file), env=at(broker))
    assert refused.code == 1 and refused.err.startswith("felixpy: nothing was sent: 2 documents cannot be used: ")
    assert not asyncio.run(retained(broker, "ippool/#"))
    done = felixpy("apply", "--ignore-unknown", "-f", str(file), env=at(broker))
    assert done.code == 0 and done.out == "1 published, 0 unchanged, 0 deleted\n"
    assert f"ignored {file}, document 1: IPPool p: IPPool field spec.natOutGoing is not known to felixpy" in done.err
    assert f"ignored {file}, document 2: kind NetworkPolcy is not known to felixpy" in done.err
