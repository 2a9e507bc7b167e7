"""A hub's peers: what a node knows of them equals what the hub has, whatever the broker does in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.hub.peers import PeerTable
from felixpy.model.net import Net
from felixpy.model.policy import EndpointPort
from felixpy.model.resources import Kind, ResourceKey, WorkloadEndpoint
from felixpy.mqtt.peer_stream import PeerStream
from felixpy.mqtt.peers import (
    DELTA,
    SHARDS,
    IdentityContent,
    Record,
    decode_peers,
    encode_peers,
    endpoint_hash,
    identity_of_topic,
    shard_of,
    shard_of_topic,
    shard_topic,
)

V4, V6 = Net.parse("10.0.0.1/32"), Net.parse("fd00::1/128")
HTTP = EndpointPort("http", 6, 80)


def key(name: str) -> ResourceKey:
    return ResourceKey(Kind.WORKLOAD_ENDPOINT, name, "shop")


def endpoint(name: str, app: str = "web", *nets: Net, ports: tuple[EndpointPort, ...] = ()) -> WorkloadEndpoint:
    labels = {"app": app, "tier": "x"}
    return WorkloadEndpoint(key(name), "n9", "cali1", nets or (V4,), labels=labels, profiles=("kns.shop",), ports=ports)


class Broker:
    """Retains what a hub writes, and delivers to one reader as MQTT does."""

    def __init__(self, table: PeerTable) -> None:
        self.table = table
        self.retained: dict[str, bytes] = {}
        self.stream = PeerStream()
        self.seen: dict[bytes, tuple[IdentityContent, tuple[Net, ...]]] = {}
        self.told = 0
        self.is_connected = False
        self.loses: Callable[[str], bool] = lambda topic: False
        self.write(table.everything())

    def write(self, content: dict[str, bytes]) -> None:
        for topic, payload in content.items():
            if payload:
                self.retained[topic] = payload
            else:
                self.retained.pop(topic, None)
            if self.is_connected and (shard_of_topic(topic) is None or self.stream.is_reading):
                self._deliver(topic, payload)

    def tell(self) -> None:
        """The hub writes what changed."""
        told = self.table.changes()
        for part in (told.first, told.shards, told.delta, told.last):
            self.write(part)
        self.catch_up()

    def connect(self) -> None:
        self.is_connected = True
        self.stream.on_connected()
        for topic in [DELTA, *(each for each in self.retained if identity_of_topic(each) is not None)]:
            if topic in self.retained:
                self._deliver(topic, self.retained[topic])
        self.catch_up()

    def catch_up(self) -> None:
        """The reader reads shards, if it wants to."""
        if self.is_connected and self.stream.is_reading:
            for topic in [each for each in self.retained if shard_of_topic(each) is not None]:
                self._deliver(topic, self.retained[topic])

    def _deliver(self, topic: str, payload: bytes) -> None:
        if self.loses(topic):
            return
        for name, record, identity in self.stream.on_message(topic, payload):
            self.told += 1
            if record is None:
                self.seen.pop(name, None)  # one whose identity never came was not told
            else:
                assert identity is not None
                self.seen[name] = identity, record.nets

    def expected(self) -> dict[bytes, str]:
        return {name: found.identity for shard in self.table._shards for name, found in shard.items()}

    def known(self) -> dict[bytes, str]:
        return {name: found.identity for shard in self.stream._known for name, found in shard.items()}


def test_a_reader_that_joins_knows_all_and_hears_each_change_once() -> None:
    broker = Broker(PeerTable("e"))
    for name in ("a", "b"):
        broker.table.put(key(name), endpoint(name, "web", V4, V6, ports=(HTTP,)))
    broker.tell()
    broker.connect()
    assert broker.stream.is_complete
    assert set(broker.seen) == {endpoint_hash(key("a")), endpoint_hash(key("b"))}
    identity, nets = broker.seen[endpoint_hash(key("a"))]
    assert nets == (V4, V6)
    assert identity == IdentityContent({"app": "web", "tier": "x"}, ("kns.shop",), (("http", 6, 80),))
    broker.told = 0
    broker.table.put(key("a"), endpoint("a", "db"))
    broker.tell()
    assert broker.told == 1
    broker.tell()  # a heartbeat
    assert broker.told == 1
    broker.connect()  # a reconnect says nothing new
    assert broker.told == 1
    broker.table.put(key("b"), None)
    broker.tell()
    assert set(broker.seen) == {endpoint_hash(key("a"))}
    assert broker.table.identities == 1
    assert sum(identity_of_topic(topic) is not None for topic in broker.retained) == 1


def test_a_change_costs_what_it_changes() -> None:
    table = PeerTable("e")
    for number in range(1000):
        table.put(key(f"pod{number}"), endpoint(f"pod{number}", f"app{number % 10}"))
    table.changes()
    table.put(key("pod7"), endpoint("pod7", "app8"))
    told = table.changes()
    assert (len(told.first), len(told.shards), len(told.last)) == (0, 1, 0)
    assert [entry.endpoint for entry in decode_peers(told.delta[DELTA]).entries] == [endpoint_hash(key("pod7"))]


def test_a_lost_delta_is_seen_at_the_next_one_and_repaired() -> None:
    broker = Broker(PeerTable("e"))
    broker.tell()
    broker.connect()
    broker.table.put(key("a"), endpoint("a"))
    broker.loses = lambda topic: topic == DELTA
    broker.tell()
    broker.loses = lambda topic: False
    assert not broker.seen
    broker.tell()  # the heartbeat, if nothing else
    assert broker.stream.is_complete
    assert set(broker.seen) == {endpoint_hash(key("a"))}


def test_nothing_is_known_before_everything_is_and_the_reason_is_said() -> None:
    broker = Broker(PeerTable("e"))
    broker.table.put(key("a"), endpoint("a"))
    assert "does felixpy hub run" in PeerStream().incomplete
    broker.tell()
    broker.loses = lambda topic: topic == shard_topic(17)
    broker.connect()
    assert f"255 of {SHARDS}" in broker.stream.incomplete
    broker.loses = lambda topic: False
    broker.catch_up()
    assert broker.stream.is_complete
    broker.loses = lambda topic: identity_of_topic(topic) is not None
    broker.table.put(key("b"), endpoint("b", "other"))
    broker.tell()
    assert "labels that are not known yet" in broker.stream.incomplete
    assert endpoint_hash(key("b")) not in broker.seen


def test_an_emptied_broker_removes_nothing() -> None:
    broker = Broker(PeerTable("e"))
    broker.table.put(key("a"), endpoint("a"))
    broker.tell()
    broker.connect()
    broker.retained.clear()
    broker.connect()
    assert not broker.stream.is_complete
    assert set(broker.seen) == {endpoint_hash(key("a"))}
    broker.write(broker.table.everything())
    broker.tell()
    assert broker.stream.is_complete
    assert broker.told == 1


def test_another_hub_goes_on_and_nothing_moves() -> None:
    broker = Broker(PeerTable("e"))
    broker.table.put(key("a"), endpoint("a"))
    broker.tell()
    broker.connect()
    other = PeerTable("f")
    other.put(key("a"), endpoint("a"))
    last = decode_peers(broker.retained[DELTA])
    other.continue_from(last.epoch, last.number)
    other.forget_news()
    broker.table, broker.told = other, 0
    broker.tell()
    assert broker.told == 0
    assert broker.stream.is_complete


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x00", b"\xff\xff", b"{}", encode_peers("e", 1, {b"short": Record("x")}), b"\x94\xa1e\x01\x90\x90"],
)
def test_what_cannot_be_read_is_said_and_harms_nothing(payload: bytes) -> None:
    broker = Broker(PeerTable("e"))
    broker.table.put(key("a"), endpoint("a"))
    broker.tell()
    broker.connect()
    for topic in (DELTA, shard_topic(3), "peers/identity/zz", "peers/shard/300", "peers/else"):
        broker.stream.on_message(topic, payload)
    assert set(broker.known()) == {endpoint_hash(key("a"))}


_NAMES = st.sampled_from([f"pod{number}" for number in range(12)])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _NAMES, st.sampled_from(["web", "db", "job"])),
        st.tuples(st.just("gone"), _NAMES),
        st.tuples(st.just("tell")),
        st.tuples(st.just("connect")),
        st.tuples(st.just("disconnect")),
        st.tuples(st.just("lose"), st.sampled_from(["delta", "identity", "shard"])),
        st.tuples(st.just("hub")),
    ),
    max_size=40,
)


@given(_STEPS)
def test_any_history_ends_in_what_the_hub_has(steps: list[tuple[str, ...]]) -> None:
    broker = Broker(PeerTable("e"))
    for step, *what in steps:
        if step == "put":
            broker.table.put(key(what[0]), endpoint(what[0], what[1]))
        elif step == "gone":
            broker.table.put(key(what[0]), None)
        elif step == "tell":
            broker.tell()
        elif step == "connect":
            broker.connect()
        elif step == "disconnect":
            broker.is_connected = False
        elif step == "lose":
            kind = what[0]
            broker.loses = lambda topic, kind=kind: kind in topic  # type: ignore[misc]
            broker.table.put(key("lost"), endpoint("lost", kind))
            broker.tell()
            broker.loses = lambda topic: False
        else:
            broker.table.skip()
        if broker.is_connected and broker.stream.is_complete and step == "tell":
            assert broker.known() == broker.expected()
    broker.tell()
    broker.connect()
    assert broker.stream.is_complete, broker.stream.incomplete
    assert broker.known() == broker.expected()
    assert broker.seen.keys() == broker.expected().keys()
    assert all(shard_of(name) == name[0] for name in broker.seen)
