"""Topics, manifests and their arithmetic: pure functions, by property."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from felixpy.model.keys import NAMESPACED
from felixpy.model.net import Net
from felixpy.model.resources import BlockAffinity, IPAMBlock, IPPool, Kind, ResourceKey, WorkloadEndpoint
from felixpy.mqtt.ledger import Ledger, counted
from felixpy.mqtt.manifest import Manifest, content_hash, parse_manifest
from felixpy.mqtt.topics import (
    OF_A_NODE,
    SEGMENT,
    endpoint_topic,
    escape,
    key_of,
    kind_filter,
    namespace_filters,
    scope_of,
    segment_of,
    shared_topic,
    topic_of,
    unescape,
)

NAMES = st.text(min_size=1, max_size=12)
LEVELS = st.sampled_from(["a", "b", "c"])
TOPICS = st.one_of(
    LEVELS.map(lambda name: f"ippool/{name}"),
    st.tuples(LEVELS, LEVELS).map(lambda pair: f"wep/n1/{pair[0]}/{pair[1]}"),
)


@given(NAMES)
def test_escaped_name_is_one_level_and_comes_back(name: str) -> None:
    level = escape(name)
    assert not set(level) & set("/+#")
    assert unescape(level) == name


@given(node=NAMES, namespace=NAMES, name=NAMES)
@example("+", "default", "w")
def test_key_of_an_endpoint_topic_is_its_key(node: str, namespace: str, name: str) -> None:
    key = ResourceKey(Kind.WORKLOAD_ENDPOINT, name, namespace)
    topic = topic_of(WorkloadEndpoint(key, node, "cali1", ()))
    assert key_of(topic) == key
    assert scope_of(topic) == f"node/{escape(node)}"


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.BLOCK_AFFINITY])
def test_key_of_a_topic_is_the_key_of_each_kind(kind: Kind) -> None:
    key = ResourceKey(kind, "a/b", "c" if kind in NAMESPACED else "")
    topic = endpoint_topic("n1", key) if kind in OF_A_NODE else shared_topic(key)
    assert key_of(topic) == key
    assert topic.split("/")[0] == segment_of(topic) == SEGMENT[kind]
    uncounted = "" if kind is Kind.NODE_STATE else "shared"
    assert scope_of(topic) == ("node/n1" if kind in OF_A_NODE else uncounted)
    assert topic_matches_sub(kind_filter(SEGMENT[kind], "n1"), topic)
    assert topic_matches_sub(kind_filter(SEGMENT[kind]), topic)


@pytest.mark.parametrize(("cidr", "level"), [("10.48.0.0/26", "10-48-0-0-26"), ("fd00:48::/122", "fd00-48---122")])
def test_blocks_go_by_their_cidr(cidr: str, level: str) -> None:
    net = Net.parse(cidr)
    block = IPAMBlock(ResourceKey(Kind.IPAM_BLOCK, level), net, "n1")
    affinity = BlockAffinity(ResourceKey(Kind.BLOCK_AFFINITY, f"n1-{level}"), net, "n1")
    assert topic_of(block) == f"block/{level}"
    assert topic_of(affinity) == f"affinity/n1/{level}"
    assert key_of(topic_of(block)) == block.key
    assert key_of(topic_of(affinity)) == affinity.key


def test_pool_topic() -> None:
    pool = IPPool(ResourceKey(Kind.IP_POOL, "a/b"), Net.parse("10.0.0.0/16"), 26)
    assert topic_of(pool) == "ippool/a%2Fb"
    assert key_of("ippool/a%2Fb") == pool.key


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "ippool",
        "ippool/",
        "ippool/a/b",
        "wep/n1/ns",
        "wep/n1/ns/a/b",
        "affinity/n1",
        "policy/other/a",
        "policy/global",
        "policy/ns/a",
        "hep/n1",
        "sync/shared",
    ],
)
def test_other_topics_hold_no_resource(topic: str) -> None:
    assert key_of(topic) is None


@pytest.mark.parametrize("strange", ["%" * 30_000, "a" * 70_000, "", "a\0b", "A", "a/b", "+"])
def test_what_cannot_be_a_namespace_is_in_no_filter(strange: str) -> None:
    assert namespace_filters("n1", ["b", "a"]) == ["wep/n1/a/+", "wep/n1/b/+"]
    assert namespace_filters("n1", ["a", strange]) == ["wep/n1/a/+", "wep/n1/#"]


def test_digest_is_the_documented_one() -> None:
    """``docs/stream.md`` gives this example, so that other publishers can check theirs."""
    assert f"{content_hash('ippool/a', b'{}'):016x}" == "682d1c1059a652f2"


def test_manifest_survives_the_wire() -> None:
    manifest = Manifest({"wep": 2}, {"wep": 0xF3}, "e", 7, {"default": 2}, "someone")
    assert parse_manifest(manifest.encode()) == manifest
    assert parse_manifest(b'{"counts":{},"later":1}') == Manifest({})


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"counts":3}',
        b'{"counts":{"wep":-1}}',
        b'{"counts":{"wep":1.5}}',
        b'{"counts":{"wep":9007199254740993}}',
        b'{"counts":{"wep":1' + b"0" * 400 + b"}}",
        b'{"counts":{"wep":1' + b"0" * 5000 + b"}}",
        b'{"counts":{},"namespaces":{"a":1' + b"0" * 400 + b"}}",
        b'{"counts":{},"rev":1' + b"0" * 400 + b"}",
        b'{"counts":{},"rev":-1}',
        b'{"counts":{},"later":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"counts":{},"digest":{"wep":"12"}}',
        b'{"counts":{},"digest":{"' + b"w" * 100_000 + b'":"12"}}',
        b'{"counts":{},"digest":{"wep":"-000000000000001"}}',
    ],
)
def test_broken_manifest_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError) as refusal:
        parse_manifest(payload)
    assert len(str(refusal.value)) < 200


@given(history=st.lists(st.tuples(TOPICS, st.sampled_from([b"", b"1", b"2", b"33"])), max_size=40))
def test_incremental_ledger_equals_counting_anew(history: list[tuple[str, bytes]]) -> None:
    content: dict[str, bytes] = {}
    ledger = Ledger(Manifest({}, epoch="e"))
    for topic, payload in history:
        ledger.change(topic, content.get(topic, b""), payload)
        if payload:
            content[topic] = payload
        else:
            content.pop(topic, None)
    assert ledger.consistent
    assert ledger.manifest() == counted(content, None, "e").manifest()
