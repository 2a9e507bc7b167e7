"""Under which keys a change reaches a node's store, over MQTT and otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from felixpy.model.parse import parse_resource
from felixpy.model.resources import Absent, Resource, ResourceKey, Update
from felixpy.mqtt import topics
from felixpy.plan.taken import taken
from felixpy.store.store import Store


def endpoint(node: str, kind: str = "WorkloadEndpoint") -> Resource:
    spec = {"node": node, "interfaceName": "cali1", "ipNetworks": ["10.0.0.1"], "expectedIPs": ["192.0.2.1"]}
    spec.pop("ipNetworks" if kind == "HostEndpoint" else "expectedIPs")
    metadata = {"name": "w", **({"namespace": "x"} if kind == "WorkloadEndpoint" else {})}
    found = parse_resource({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})
    assert found is not None
    assert not isinstance(found, Absent)
    return found


def stored(node: str, kind: str) -> Update:
    found = endpoint(node, kind)
    key = topics.key_on(topics.topic_of(found), "n1")
    assert key is not None
    return Update(key, replace(found, key=key))  # type: ignore[type-var]


def shown(key: ResourceKey) -> str:
    """An endpoint's name, with its node if it is stored as one of another node."""
    levels = key.name.split("/")
    return key.name if len(levels) == 1 else f"{levels[1]}/{levels[-1]}"


@pytest.mark.parametrize("kind", ["WorkloadEndpoint", "HostEndpoint"])
@pytest.mark.parametrize(
    ("there", "asked", "follows", "names", "verb"),
    [
        ([], "n1", True, ["+w"], "create"),
        ([], "n2", True, ["+n2/w"], "create"),
        ([], "n2", False, [], "is not told to this node"),
        (["n1"], "n2", True, ["-w", "+n2/w"], "move"),
        (["n1"], "n2", False, ["-w"], "leaves this node"),
        (["n2"], "n1", True, ["-n2/w", "+w"], "move"),
        (["n2", "n3"], "n3", True, ["-n2/w", "+n3/w"], "move"),
        (["n1", "n2"], None, True, ["-w", "-n2/w"], "delete"),
        ([], None, True, [], "is not there"),
        (["n1"], "n1", True, ["+w"], "unchanged"),
    ],
)
def test_an_endpoint_over_mqtt_leaves_the_node_that_it_was_on(
    kind: str, there: list[str], asked: str | None, follows: bool, names: list[str], verb: str
) -> None:
    store = Store("n1")
    for node in there:
        store.apply(stored(node, kind))
    key = endpoint("n1", kind).key
    update = Update(key, endpoint(asked, kind) if asked else None)
    (found,) = taken(store, [update], over_mqtt=True, follows_peers=follows)
    assert [f"{'+' if one.resource else '-'}{shown(one.key)}" for one in found.updates] == names
    assert found.verb == verb


def test_elsewhere_keys_are_as_they_are_written() -> None:
    store = Store("n1")
    remote = endpoint("n2")
    (found,) = taken(store, [Update(remote.key, remote)], over_mqtt=False, follows_peers=True)
    assert (found.updates, found.verb) == ((Update(remote.key, remote),), "create")
    store.apply(Update(remote.key, remote))
    gone: list[Any] = taken(store, [Update(remote.key, None)], over_mqtt=False, follows_peers=True)
    assert gone[0].verb == "delete"
    assert taken(store, [Update(ResourceKey(remote.key.kind, "o", "x"), None)], over_mqtt=False,
                 follows_peers=True)[0].verb == "is not there"  # fmt: skip
