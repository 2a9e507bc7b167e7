"""A change as it reaches this node's store: under which keys its objects are there, and what becomes of each.

Over MQTT an endpoint of another node is kept by its topic (``topics.key_on``), and one that is applied leaves the
node that it was on, as ``felixpy apply`` does it. Where endpoints of other nodes are not followed, none comes. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from msgspec.structs import replace

from felixpy.model.resources import HostEndpoint, Kind, Resource, ResourceKey, Update, WorkloadEndpoint
from felixpy.mqtt import topics
from felixpy.store.store import Store


class Taken(NamedTuple):
    """``asked`` as it was written, ``updates`` as the store takes it: none where this node hears nothing of it."""

    asked: Update
    updates: tuple[Update, ...]
    verb: str


def taken(store: Store, asked: Iterable[Update], *, over_mqtt: bool, follows_peers: bool) -> list[Taken]:
    """What the store takes of each update of a change."""
    return [_taken(store, update, over_mqtt=over_mqtt, follows_peers=follows_peers) for update in asked]


def _taken(store: Store, asked: Update, *, over_mqtt: bool, follows_peers: bool) -> Taken:
    if asked.key.kind not in topics.OF_A_NODE or not over_mqtt:
        return Taken(asked, (asked,), _verb(store, asked.key, asked.resource))
    held = _held(store, asked.key)
    if asked.resource is None:
        return Taken(asked, tuple(Update(key, None) for key in held), "delete" if held else "is not there")
    resource = asked.resource
    assert isinstance(resource, WorkloadEndpoint | HostEndpoint)
    gone = tuple(Update(key, None) for key in held)
    if resource.node != store.node_name and not follows_peers:
        return Taken(asked, gone, "leaves this node" if gone else "is not told to this node")
    key = topics.key_on(topics.topic_of(resource), store.node_name)
    assert key is not None
    here = Update(key, replace(resource, key=key))
    moved = tuple(update for update in gone if update.key != key)
    return Taken(asked, (*moved, here), "move" if moved else _verb(store, key, here.resource))


def as_written(key: ResourceKey) -> ResourceKey:
    """The key of an object as people write it, however it is stored."""
    return (topics.key_of(key.name) if "/" in key.name else None) or key


def _held(store: Store, key: ResourceKey) -> list[ResourceKey]:
    """Keys under which an endpoint is stored: of this node, or of others by their topics."""
    own = store.endpoints if key.kind is Kind.WORKLOAD_ENDPOINT else store.policy[key.kind]
    others = store.remote if key.kind is Kind.WORKLOAD_ENDPOINT else own
    found = [one for one in others if one != key and as_written(one) == key]
    return [key, *found] if key in own else found


def _verb(store: Store, key: ResourceKey, resource: Resource | None) -> str:
    held = store.held(key)
    if resource is None:
        return "delete" if held is not None else "is not there"
    if held is None:
        return "create"
    return "unchanged" if held == resource else "change"
