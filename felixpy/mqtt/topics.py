"""Where a resource lives on the broker: resource or key ↔ topic, as in ``docs/stream.md``.

All topics here are relative to the root (``FELIX_MQTTTOPICROOT``); only the connection adds or removes it, so that a
manifest's digest does not depend on the root. Invariant: different topics have different keys, and
``key_of(topic_of(resource)) == resource.key``, but for blocks and affinities that are not named as Calico names them
(``10-48-0-0-26``, ``<node>-10-48-0-0-26``): their key is the canonical name. Pure; it must never look at a payload.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from sys import intern
from types import MappingProxyType

from felixpy.model.names import MAX_NAME, cidr_name, is_namespace
from felixpy.model.net import Net
from felixpy.model.resources import (
    NAMESPACED,
    BlockAffinity,
    HostEndpoint,
    IPAMBlock,
    Kind,
    Resource,
    ResourceKey,
    WorkloadEndpoint,
)

SHARED = "shared"
"""Scope of the kinds that every node reads. The scope of one node's endpoints is ``node/<node>``."""

_PLACES = MappingProxyType(
    {
        Kind.IP_POOL: ("ippool",),
        Kind.NODE: ("node",),
        Kind.NODE_STATE: ("nodestate",),
        Kind.IPAM_BLOCK: ("block",),
        Kind.BLOCK_AFFINITY: ("affinity",),
        Kind.FELIX_CONFIGURATION: ("felixconfig",),
        Kind.BGP_CONFIGURATION: ("bgpconfig",),
        Kind.WORKLOAD_ENDPOINT: ("wep",),
        Kind.HOST_ENDPOINT: ("hep",),
        Kind.PROFILE: ("profile",),
        Kind.TIER: ("tier",),
        Kind.GLOBAL_NETWORK_POLICY: ("policy", "global"),
        Kind.NETWORK_POLICY: ("policy", "ns"),
        Kind.KUBERNETES_NETWORK_POLICY: ("policy", "kubernetes"),
        Kind.CLUSTER_NETWORK_POLICY: ("policy", "cluster"),
        Kind.STAGED_GLOBAL_NETWORK_POLICY: ("policy", "staged-global"),
        Kind.STAGED_NETWORK_POLICY: ("policy", "staged-ns"),
        Kind.STAGED_KUBERNETES_NETWORK_POLICY: ("policy", "staged-kubernetes"),
        Kind.GLOBAL_NETWORK_SET: ("netset", "global"),
        Kind.NETWORK_SET: ("netset", "ns"),
        Kind.NAMESPACE: ("namespace",),
        Kind.SERVICE_ACCOUNT: ("serviceaccount",),
        Kind.SERVICE: ("service",),
        Kind.ENDPOINT_SLICE: ("endpointslice",),
    }
)
"""First levels of a kind's topics; then come the namespace, if it has one, and the name."""

SEGMENT = MappingProxyType({kind: place[0] for kind, place in _PLACES.items()})
_KIND_AT = MappingProxyType({place: kind for kind, place in _PLACES.items()})

OF_A_NODE = frozenset({Kind.WORKLOAD_ENDPOINT, Kind.HOST_ENDPOINT})
"""Kinds whose topics name the node that the object is on."""

_NAMED_ONCE = {
    place[0]: kind
    for kind, place in _PLACES.items()
    if len(place) == 1 and kind not in NAMESPACED | OF_A_NODE | {Kind.BLOCK_AFFINITY}
}
"""Kinds whose topics are the first level and a name."""

NODE_SEGMENTS = ("wep", "hep")
STATE_SEGMENT = SEGMENT[Kind.NODE_STATE]
"""Each of its topics has a writer of its own, the node, so no manifest counts them."""

_FIRST = ("felixconfig", "ippool", "node", "block", "affinity")  # what follows is read in the light of these
SHARED_SEGMENTS = tuple(
    dict.fromkeys((*_FIRST, *(name for name in SEGMENT.values() if name not in (*NODE_SEGMENTS, STATE_SEGMENT))))
)
COUNTED_SEGMENTS = (*SHARED_SEGMENTS, *NODE_SEGMENTS)
"""What publishers write, and manifests count."""

_ESCAPED = re.compile(r"[%/+#]")


def escape(name: str) -> str:
    """Percent-encode what a topic level cannot hold: ``a/b`` → ``a%2Fb``."""
    return _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", name)


def unescape(level: str) -> str:
    """Inverse of ``escape``; an escape that ``escape`` never writes is left as it stands."""
    if "%" not in level:
        return level
    return re.sub(r"%(25|2[Ff]|2[Bb]|23)", lambda match: chr(int(match[1], 16)), level)


def node_scope(node: str) -> str:
    return f"node/{escape(node)}"


def topic_of(resource: Resource) -> str:
    """Topic of a resource. Blocks and affinities go by their CIDR (and node), whatever their name is."""
    if isinstance(resource, WorkloadEndpoint | HostEndpoint):
        return endpoint_topic(resource.node, resource.key)
    if isinstance(resource, BlockAffinity):
        return affinity_topic(resource.host, resource.cidr)
    if isinstance(resource, IPAMBlock):
        return block_topic(resource.cidr)
    return shared_topic(resource.key)


def block_topic(cidr: Net) -> str:
    return f"block/{cidr_name(cidr)}"


def affinity_topic(node: str, cidr: Net) -> str:
    return f"affinity/{escape(node)}/{cidr_name(cidr)}"


def shared_topic(key: ResourceKey) -> str:
    """Topic of a key whose kind needs nothing but its names."""
    return "/".join((*_PLACES[key.kind], *_names(key)))


def _names(key: ResourceKey) -> tuple[str, ...]:
    return (escape(key.namespace), escape(key.name)) if key.kind in NAMESPACED else (escape(key.name),)


def endpoint_topic(node: str, key: ResourceKey) -> str:
    """Topic of a workload or host endpoint on ``node``."""
    return "/".join((SEGMENT[key.kind], escape(node), *_names(key)))


def endpoint_filter(key: ResourceKey) -> str:
    """Subscription that finds an endpoint on whatever node it is."""
    return "/".join((SEGMENT[key.kind], "+", *_names(key)))


def key_of(topic: str) -> ResourceKey | None:
    """Key of the resource at a topic; None for a topic that holds no resource of a known kind."""
    segment, _, name = topic.partition("/")
    usual = _NAMED_ONCE.get(segment)
    if usual is not None and name and "/" not in name:
        return ResourceKey(usual, unescape(name))
    segment, *levels = topic.split("/")
    kind = _KIND_AT.get((segment,))
    if kind is None and levels:
        kind = _KIND_AT.get((segment, levels.pop(0)))
    if kind is None or not all(levels):
        return None
    names = [unescape(level) for level in levels] if "%" in topic else levels
    if kind is Kind.WORKLOAD_ENDPOINT:
        return ResourceKey(kind, names[2], intern(names[1])) if len(names) == 3 else None  # of few namespaces many
    if kind is Kind.HOST_ENDPOINT:
        return ResourceKey(kind, names[1]) if len(names) == 2 else None
    if kind is Kind.BLOCK_AFFINITY:
        return ResourceKey(kind, f"{names[0]}-{names[1]}") if len(names) == 2 else None
    if kind in NAMESPACED:
        return ResourceKey(kind, names[1], names[0]) if len(names) == 2 else None
    return ResourceKey(kind, names[0]) if len(names) == 1 else None


def key_on(topic: str, node: str) -> ResourceKey | None:
    """Key under which a node takes what is at a topic: of another node's endpoint, the topic itself.

    Nothing keeps publishers from one name on two nodes, and an endpoint that moves is at two topics for a while. The
    text is the snapshot's own, so that a key of a hundred thousand endpoints costs no text of its own.
    """
    segment, _, rest = topic.partition("/")
    if segment in NODE_SEGMENTS and rest.partition("/")[0] != escape(node):
        return ResourceKey(_KIND_AT[segment,], topic) if key_of(topic) else None
    return key_of(topic)


def is_too_long(topic: str) -> bool:
    """Whether a level is longer than any name: no object that stands there is valid, and none that speaks of it.

    What is said of a resource would be longer still than its topic: too long for a topic, a log line and a status.
    """
    return len(topic) > MAX_NAME and any(len(unescape(level)) > MAX_NAME for level in topic.split("/"))


def segment_of(topic: str) -> str:
    """First level: the kind's short name, which is also its name in a manifest."""
    return topic.partition("/")[0]


def scope_of(topic: str) -> str:
    """Scope whose manifest counts a resource's topic: ``shared`` or ``node/<node>`` (escaped); empty if none does."""
    segment, _, rest = topic.partition("/")
    if segment == STATE_SEGMENT:
        return ""
    return f"node/{rest.partition('/')[0]}" if segment in NODE_SEGMENTS else SHARED


def manifest_topic(scope: str) -> str:
    return f"sync/{scope}"


def scope_of_manifest(topic: str) -> str | None:
    """Scope of a manifest's topic; None for any other topic."""
    return topic.removeprefix("sync/") if topic.startswith("sync/") else None


def kind_filter(segment: str, node: str = "+") -> str:
    """Subscription for everything of one first level; of one node where it is a node's."""
    if segment in NODE_SEGMENTS and node != "+":
        return f"{segment}/{escape(node)}/#"
    return f"{segment}/#" if segment in _DEEP else f"{segment}/+"


_DEEP = frozenset(SEGMENT[kind] for kind, place in _PLACES.items() if len(place) > 1 or kind in NAMESPACED) | {
    "affinity",
    "hep",
}


def namespace_filters(node: str, namespaces: Iterable[str]) -> list[str]:
    """Subscriptions that together find a node's endpoints in these namespaces.

    What cannot be a namespace may be too long for a filter, or hold what no filter may: then one filter finds all.
    """
    named = set(namespaces)
    filters = [f"wep/{escape(node)}/{name}/+" for name in sorted(named) if is_namespace(name)]
    return filters if len(filters) == len(named) else [*filters, kind_filter("wep", node)]


def node_state_topic(node: str) -> str:
    """What a node says of itself: retained, written by nobody else."""
    return f"{STATE_SEGMENT}/{escape(node)}"


def status_topic(node: str) -> str:
    """The agent's state: retained, and its last will."""
    return f"status/{escape(node)}"


def endpoint_status_topic(node: str, namespace: str, name: str) -> str:
    return f"status/{escape(node)}/wep/{escape(namespace)}/{escape(name)}"


def endpoint_status_filter(node: str) -> str:
    """Subscription for the status of every endpoint of a node."""
    return f"{status_topic(node)}/wep/#"


def topic_of_status(topic: str) -> str | None:
    """Topic of the endpoint that an endpoint's status speaks of; None for any other topic."""
    levels = topic.split("/")
    if len(levels) != 5 or levels[0] != "status" or levels[2] != "wep" or not all(levels):
        return None
    return f"wep/{levels[1]}/{levels[3]}/{levels[4]}"


def rights_topic(node: str) -> str:
    """Whoever may write here is, for the broker's access rules, this node. Empty messages, never retained."""
    return f"{status_topic(node)}/probe"


def command_topic(node: str, verb: str) -> str:
    """Never retained."""
    return f"cmd/{escape(node)}/{escape(verb)}"


def verb_of(topic: str, node: str) -> str | None:
    """The verb of a command for this node; None for any other topic."""
    prefix = f"cmd/{escape(node)}/"
    return unescape(topic.removeprefix(prefix)) if topic.startswith(prefix) else None


def reply_topic(client_id: str, node: str) -> str:
    """Where a node answers who asked it. Never retained."""
    return f"reply/{escape(client_id)}/{escape(node)}"


def reply_filter(client_id: str) -> str:
    """Subscription for the answers of all nodes."""
    return f"reply/{escape(client_id)}/+"


def is_reply_of(topic: str, node: str) -> bool:
    """Whether a topic is one at which this node may answer somebody, and nothing else."""
    levels = topic.split("/")
    return len(levels) == 3 and levels[0] == "reply" and bool(levels[1]) and levels[2] == escape(node)


def replying_node(topic: str) -> str | None:
    """The node that answers at a topic; None for any other topic."""
    levels = topic.split("/")
    return unescape(levels[2]) if len(levels) == 3 and levels[0] == "reply" else None


def status_node(topic: str) -> str | None:
    """The node whose state stands at a topic; None for any other topic."""
    levels = topic.split("/")
    return unescape(levels[1]) if len(levels) == 2 and levels[0] == "status" else None


def probe_topic(client_id: str) -> str:
    """A client's echo to itself: what the broker queued before it has arrived. Never retained."""
    return f"probe/{escape(client_id)}"
