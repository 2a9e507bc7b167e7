"""A change taken into a calculation, and what is different after it: kernel, classes, connections.

    before:  what the tables would write, who asks what, what is decided of each connection
    change:  store ─► calculation ─► tables, piece by piece, as the agent takes it
    after:   the same three once more

Invariant: only for a copy of the agent, which never writes and is thrown away. What cannot be judged is named.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from felixpy.calc.graph import Calculation
from felixpy.calc.policy.classes import (
    Direction,
    EndpointClasses,
    EndpointClassKey,
    HostEndpointChains,
    PolicyKey,
    PolicyValue,
)
from felixpy.calc.policy.walk import Decision, Judgement, Packet, Surroundings, Walk
from felixpy.config import DatastoreType, Settings
from felixpy.dataplane.apply import Dataplane
from felixpy.model.net import FAMILIES, format_address
from felixpy.model.resources import Kind, ResourceKey, WorkloadEndpoint
from felixpy.netlink.connections import Stage
from felixpy.plan import connections
from felixpy.plan.change import ChangeError, read
from felixpy.plan.connections import Interfaces, Seen
from felixpy.plan.taken import Taken, as_written, taken
from felixpy.sources import SyncStatus
from felixpy.sources.chosen import datastore
from felixpy.store.store import Store

MOST_NAMES = 10

_GONE = "no endpoint here has the address any more"
_READ_ANEW = {
    "nftables_mode": "the back-end",
    "iptables_backend": "the back-end",
    "ipv4_support": "the families",
    "ipv6_support": "the families",
    "interface_prefix": "which interfaces are workloads'",
    "device_route_protocol": "which routes are ours",
}
"""Settings after which the agent reads the node anew, which is not done here."""

_ALWAYS_UNJUDGED = (
    "attempts that were denied leave no conntrack entry, so what a change lets through for the first time is told by "
    "classes and rules, not by connections",
)


Entries = Mapping[PolicyKey, PolicyValue]


class Foreseeing(Protocol):
    """Settings, as ``Configuration`` has them."""

    def foresee(self) -> dict[str, str]: ...


class Subject(Protocol):
    """The agent, or rather a copy of it."""

    store: Store
    calculation: Calculation
    dataplane: Dataplane
    stream: SyncStatus
    complete: bool

    @property
    def configuration(self) -> Foreseeing: ...

    @property
    def settings(self) -> Settings: ...


class View(NamedTuple):
    """What is compared. ``places``: the interface of the local workload at either end of a packet, empty for none."""

    operations: Counter[tuple[str, str, str]]
    classes: Mapping[ResourceKey, tuple[str, str]]
    judgements: Mapping[Packet, Judgement]
    places: Mapping[bytes, str]
    names: Mapping[bytes, str]
    problems: Mapping[ResourceKey, str]


def outlook(agent: Subject, data: bytes) -> bytes:
    """What a change (``felixpy.plan.change``) would do, as JSON. ``agent`` is spoilt by it.

    Raises:
        ChangeError: the change cannot be read, or nothing is known yet.
    """
    if not agent.complete:
        raise ChangeError("the agent has no complete snapshot yet, so it cannot tell; `felixpy status` says why")
    updates, most = read(data)
    seen = connections.read_seen()
    with contextlib.closing(Interfaces(agent.dataplane.links.name_of)) as interfaces:
        before = _view(agent, seen, interfaces)
        over_mqtt = datastore(agent.settings) is DatastoreType.MQTT
        changes = taken(agent.store, updates, over_mqtt=over_mqtt, follows_peers=not agent.stream.peers)
        settings = _take(agent, changes)
        after = _view(agent, seen, interfaces)
    return msgspec.json.encode(
        {
            "node": agent.store.node_name,
            "objects": [
                {"object": str(asked.key), "verb": verb, "problem": after.problems.get(asked.key, ""),
                 "endpoints": agent.calculation.policy.asking(asked.key)}
                for asked, _, verb in changes
            ],
            "settings": settings,
            "problems": {
                str(key): words
                for key, words in after.problems.items()
                if before.problems.get(key) != words and key not in {update.key for update in updates}
            },
            "kernel": _kernel(before, after, most),
            "classes": _classes(before, after, most),
            "connections": _connections(seen, before, after, most),
            "not_judged": [*_not_judged(agent, seen, settings), *_ALWAYS_UNJUDGED],
        }
    )  # fmt: skip


# --- the two states ------------------------------------------------------------------------------------------------


def _view(agent: Subject, seen: Seen, interfaces: Interfaces) -> View:
    host = agent.calculation.host
    own = {one.net.packed for one in host.addresses} | {net.packed for net in host.loopback}
    in_use = agent.calculation.policy.in_use()
    walk = Walk(
        in_use, agent.store, agent.settings, Surroundings(own.__contains__, interfaces.to, agent.dataplane.in_use)
    )
    judgements = {packet: walk.judge(packet) for packet in seen.packets}
    ends = {address for packet in seen.packets for address in (packet.source, packet.destination)}
    return View(
        Counter((verb, table, entry) for verb, table, entry in agent.dataplane.plan()),
        dict(_asked(agent, in_use.entries)),
        judgements,
        {address: place for address in ends if (place := walk.interface_of(address))},
        _names(agent, ends),
        dict(agent.calculation.problems),
    )


def _names(agent: Subject, addresses: set[bytes]) -> dict[bytes, str]:
    """Names of the endpoints that have these addresses, of this node or of others."""
    found = {
        one.net.packed: f"node {agent.store.node_name}"
        for one in agent.calculation.host.addresses
        if one.net.packed in addresses
    }
    for key, peer in agent.store.remote.items():
        for net in peer.nets:
            if net.packed in addresses:
                written = as_written(key)
                found[net.packed] = f"{written.namespace}/{written.name}"
    for key, endpoint in agent.store.endpoints.items():
        found |= {net.packed: f"{key.namespace}/{key.name}" for net in endpoint.addresses if net.packed in addresses}
    return found


def _asked(agent: Subject, entries: Entries) -> Iterator[tuple[ResourceKey, tuple[str, str]]]:
    """What local endpoints are asked, ingress and egress, in words."""
    policy = agent.calculation.policy
    words = {(way, number): asked for way, number, asked, _ in policy.classes()}
    for key, endpoint in agent.store.endpoints.items():
        numbers = _numbers(agent, entries, endpoint)
        if numbers is not None:
            yield (
                key,
                (
                    words.get((Direction.INGRESS.value, numbers.ingress), "everything denied: policy is not known yet"),
                    words.get((Direction.EGRESS.value, numbers.egress), "everything denied: policy is not known yet"),
                ),
            )


def _numbers(agent: Subject, entries: Entries, endpoint: WorkloadEndpoint) -> EndpointClasses | None:
    if agent.store.interface_owner(endpoint.interface) != endpoint.key:
        return None
    for family in FAMILIES:
        found = entries.get(EndpointClassKey(family, endpoint.interface))
        if isinstance(found, EndpointClasses):
            return found
    return None


def _take(agent: Subject, changes: Iterable[Taken]) -> dict[str, str]:
    """As the agent takes them; returns the settings that become others."""
    dirty: set[ResourceKey] = set()
    updates = [update for change in changes for update in change.updates]
    for update in updates:
        dirty |= agent.store.apply(update) | {update.key}
    agent.dataplane.want(agent.calculation.calculate(dirty))
    own = ResourceKey(Kind.NODE, agent.store.node_name)
    is_asked = any(update.key.kind is Kind.FELIX_CONFIGURATION or update.key == own for update in updates)
    return agent.configuration.foresee() if is_asked else {}


# --- what is different ---------------------------------------------------------------------------------------------


def _kernel(before: View, after: View, most: int) -> dict[str, Any]:
    operations = sorted((after.operations - before.operations).elements(), key=lambda one: (one[1], one[0], one[2]))
    counts = Counter(verb for verb, _, _ in operations)
    return {
        "count": len(operations),
        **{verb: counts[verb] for verb in ("add", "change", "remove")},
        "operations": [dict(zip(("verb", "table", "entry"), one, strict=True)) for one in operations[:most]],
    }


def _classes(before: View, after: View, most: int) -> list[dict[str, Any]]:
    """Endpoints that are asked something else, those alike together. An endpoint that comes or goes has one side."""
    groups: defaultdict[tuple[str, str, str], list[ResourceKey]] = defaultdict(list)
    nothing = "", ""
    for key in before.classes.keys() | after.classes.keys():
        ways = zip(Direction, before.classes.get(key, nothing), after.classes.get(key, nothing), strict=True)
        for way, old, new in ways:
            if old != new:
                groups[way.value, old, new].append(key)
    rows = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        {"direction": way, "before": old, "after": new, "endpoints": len(keys),
         "names": [f"{key.namespace}/{key.name}" for key in sorted(keys)[:MOST_NAMES]]}
        for (way, old, new), keys in rows[:most]
    ]  # fmt: skip


class _Pair(NamedTuple):
    """Connections that fare alike: the same ends and port, the same decisions before and after."""

    source: bytes
    destination: bytes
    protocol: int
    port: int
    icmp: tuple[int, int] | None
    before: Judgement
    after: Judgement
    at_once: bool


def _connections(seen: Seen, before: View, after: View, most: int) -> dict[str, Any]:
    pairs: defaultdict[_Pair, Counter[Stage]] = defaultdict(Counter)
    judged = elsewhere = 0
    for packet, counts in seen.packets.items():
        old, new, moved = before.judgements[packet], after.judgements[packet], _moved(packet, before, after)
        if not (old.decisions or new.decisions or moved):
            continue
        judged += counts.total()
        if moved:
            new = Judgement(False, (Decision(moved, False, end=_GONE),))
        if old.allowed is new.allowed:
            elsewhere += counts.total() if old != new else 0
            continue
        where = packet.source, packet.destination, packet.protocol, packet.port, packet.icmp
        pairs[_Pair(*where, old, new, moved is not None)].update(counts)
    names = {**before.names, **after.names}
    rows = sorted(pairs.items(), key=lambda item: (item[0].after.allowed, -item[1].total(), item[0][:4]))
    return {
        "source": connections.SOURCE,
        "read": seen.entries,
        "judged": judged,
        "left_out": seen.left_out,
        "limit": connections.MOST,
        "decided_by_others": elsewhere,
        "cut": _sums(rows, allowed=False),
        "opened": _sums(rows, allowed=True),
        "pairs": [_row(pair, counts, names) for pair, counts in rows[:most]],
    }


def _moved(packet: Packet, before: View, after: View) -> Direction | None:
    """Whether an end leaves its interface: then the agent deletes the entries of its address."""
    for address, way in ((packet.source, Direction.EGRESS), (packet.destination, Direction.INGRESS)):
        place = before.places.get(address)
        if place and after.places.get(address) != place:
            return way
    return None


def _sums(rows: list[tuple[_Pair, Counter[Stage]]], *, allowed: bool) -> dict[str, int]:
    mine = [(pair, counts) for pair, counts in rows if pair.after.allowed is allowed]
    stages: Counter[Stage] = Counter()
    for _, counts in mine:
        stages.update(counts)
    return {"pairs": len(mine), **{stage.value: stages[stage] for stage in Stage}}


def _row(pair: _Pair, counts: Counter[Stage], names: Mapping[bytes, str]) -> dict[str, Any]:
    return {
        "effect": "opened" if pair.after.allowed else "cut",
        "at_once": pair.at_once,
        "source": format_address(pair.source),
        "source_name": names.get(pair.source, ""),
        "destination": format_address(pair.destination),
        "destination_name": names.get(pair.destination, ""),
        "protocol": pair.protocol,
        "port": pair.port,
        "icmp": pair.icmp,
        **{stage.value: counts[stage] for stage in Stage},
        "before": _said(pair.before),
        "after": _said(pair.after),
    }


def _said(judgement: Judgement) -> dict[str, Any]:
    """Who decides: of a packet that passes all that were asked, of another one the one that stops it."""
    deciding = judgement.decisions if judgement.allowed else judgement.decisions[-1:]
    return {
        "allowed": judgement.allowed,
        "by": [str(decision) for decision in deciding],
        "decisions": [decision._asdict() for decision in deciding],
    }


def _not_judged(agent: Subject, seen: Seen, settings: Mapping[str, str]) -> Iterator[str]:
    if seen.missing:
        yield seen.missing
    if seen.left_out:
        yield f"{seen.left_out} connections beyond the {connections.MOST} different ones that are looked at"
    if seen.of_other_zones:
        yield f"{seen.of_other_zones} conntrack entries of other zones, which are other programs' (Open vSwitch)"
    for what in dict.fromkeys(_READ_ANEW[name] for name in settings if name in _READ_ANEW):
        yield f"what follows from another choice of {what}: the agent reads the node anew then"
    hosts = [one for one in agent.calculation.policy.in_use().entries.values() if isinstance(one, HostEndpointChains)]
    if any(host.untracked_ingress or host.untracked_egress for host in hosts):
        yield "connections that a doNotTrack policy lets pass: they are not tracked, so nobody knows them"
