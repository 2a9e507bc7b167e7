"""The agent without its loop: what ``plan``, ``show`` and ``cleanup`` need. Only ``cleanup`` ever writes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from felixpy.agent.agent import Agent
from felixpy.agent.own_node import OwnNode
from felixpy.calc.entries import ElementKey, FdbKey, Key, PeerKey
from felixpy.calc.rule import ChainKey
from felixpy.cni.remains import Remains
from felixpy.config import DatastoreType, Settings, SettingsSource
from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.backends import make_filter, remove_leftovers
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.links import Links
from felixpy.dataplane.packet_filter import FilterError
from felixpy.dataplane.report import Operation
from felixpy.model.net import FAMILIES, Family, format_address
from felixpy.node.detection import DetectionError
from felixpy.observe.endpoint_folders import FOLDER, Folders, describe, empty
from felixpy.plain_error import PlainError
from felixpy.sources import Source, SyncState
from felixpy.sources.chosen import datastore
from felixpy.sources.once import read_once


class SurveyError(PlainError):
    """The node or the stream cannot be surveyed: one sentence for people."""


@contextlib.asynccontextmanager
async def survey(
    settings: Settings,
    sources: Sequence[SettingsSource],
    stream: Source,
    timeout: float,  # noqa: ASYNC109
    *,
    beside_felix: bool = False,
) -> AsyncIterator[Agent]:
    """An agent that has taken one whole snapshot of the stream and has read the kernel, and that writes nothing.

    ``beside_felix``: also where rules of a Felix stand.

    Raises:
        SurveyError: the snapshot did not become complete in ``timeout`` seconds.
        OSError, FilterError: the kernel refused.
    """
    collected = await read_once(stream, timeout)
    if collected.status.state is not SyncState.IN_SYNC:
        reason = collected.status.reason or "no answer"
        raise SurveyError(f"the stream gave no complete snapshot within {timeout:g} s: {reason}")
    agent = Agent(settings, sources)
    try:
        await agent.open(beside_felix=beside_felix)
        for update in collected.updates.values():
            agent.update(update)
        agent.sync_status(collected.status)
        await agent.absorb()
        await _introduce(agent)
        await agent.dataplane.routing.read_occupants()
        agent.dataplane.plan()  # compares everything, so that state_of tells what the kernel holds from what it lacks
        yield agent
    finally:
        agent.close()


async def _introduce(agent: Agent) -> None:
    """Take this node's own addresses as a running agent does, where the stream does not tell what one said of itself.

    Raises:
        SurveyError: a variable of the environment cannot be used.
    """
    store = agent.store
    if store.node_name in store.node_states or datastore(agent.settings) is DatastoreType.KUBERNETES:
        return
    try:
        await OwnNode(agent, lambda document: None).decide()
    except DetectionError as error:
        raise SurveyError(str(error)) from None
    await agent.absorb()


class Line(NamedTuple):
    """One entry as felixpy wants it and as the kernel has it (empty: not at all)."""

    table: str
    entry: str
    wanted: str
    kernel: str
    note: str = ""


UNDERLAY = ("devices", "peers", "addresses", "fdb", "nexthops", "rules of routing")
"""Tables of how packets get to other nodes."""


def compare(agent: Agent, tables: tuple[str, ...]) -> list[Line]:
    """Entries of the tables whose names end with one of ``tables``, wanted and present, in order."""
    lines = []
    for table in agent.dataplane.tables():
        if not table.name.endswith(tables):
            continue
        keys = {*table.desired, *table.committed}
        dirty = table.delta(agent.dataplane.clock())
        for key in sorted(keys, key=str):
            wanted = _text(key, table.desired[key]) if key in table.desired else ""
            present = key in table.committed and key not in dirty.put
            kernel = wanted or "present" if present else _kernel_text(agent.links, key, table.committed.get(key))
            if present and isinstance(key, PeerKey) and (traffic := agent.dataplane.routing.peers.traffic.get(key)):
                kernel = traffic.told(time.time())
            lines.append(Line(table.name, str(key), wanted, kernel, table.waiting.get(key, "")))
    return lines


def endpoints(agent: Agent) -> list[Line]:
    """Local endpoints with what the kernel makes of them."""
    lines = []
    for key, endpoint in sorted(agent.store.endpoints.items()):
        if not agent.store.local(endpoint):
            continue
        state, reason = agent.outcome.state_of(key)
        addresses = ", ".join(str(address) for address in endpoint.addresses)
        lines.append(
            Line("endpoints", f"{key.namespace}/{key.name}", f"{endpoint.interface} {addresses}", state, reason)
        )
    return lines


def pools(agent: Agent) -> list[Line]:
    """Pools with what the kernel makes of them."""
    lines = []
    for key, pool in sorted(agent.store.pools.items()):
        state, reason = agent.outcome.state_of(key)
        wanted = f"{pool.cidr} natOutgoing={str(pool.nat_outgoing).lower()} encapsulation={pool.encapsulation}"
        lines.append(Line("pools", key.name, wanted + (" disabled" if pool.disabled else ""), state or "up", reason))
    return lines


def _text(key: Key | ChainKey, value: object) -> str:
    if isinstance(key, ElementKey) or value is None:
        return "present"
    if isinstance(key, FdbKey) and isinstance(value, bytes):
        return f"dst {format_address(value)}"
    if isinstance(value, tuple) and isinstance(key, ChainKey):
        return f"{len(value)} rules"
    return value.hex(":") if isinstance(value, bytes) else str(value)


def _kernel_text(links: Links, key: Key | ChainKey, value: object) -> str:
    if value is None and not isinstance(key, ElementKey):
        return ""
    if isinstance(key, ElementKey):
        return "" if value is None else "present"
    index = getattr(value, "interface", None)
    if isinstance(index, int):
        return f"protocol {getattr(value, 'protocol', 0)} dev {links.name_of(index) or index}"
    return _text(key, value)


async def cleanup(settings: Settings, *, dry_run: bool) -> list[str]:
    """Remove everything of ours from this node, whatever back-end, family or prefix made it; returns what it was.

    Interface settings stay: nobody knows what stood there before. Containers lose their interfaces.

    Raises:
        SurveyError: something could not be removed.
        OSError: the kernel refused.
    """
    dataplane = Dataplane(replace(settings, remove_external_routes=False), Links(lambda: 0.0), {})
    try:
        await dataplane.read()
        found = [f"{table}: {entry}" for _, table, entry in dataplane.plan()]
        found += [line for backend in Backend for family in FAMILIES for line in await _left(backend, family, settings)]
        folders = Folders.of(settings)
        left = folders.ours()
        found += [f"{FOLDER} {describe(folder)}" for folder in left]
        remains = Remains.of(settings)
        found += remains.told()
        if dry_run:
            return found
        for folder in left:  # first: a file that is there says that its endpoint is up
            empty(folders, folder)
        remains.remove_before_rules()
        await dataplane.apply(complete=True)
        remaining = [
            f"{table.name} {key}: {why.reason}" for table in dataplane.tables() for key, why in table.refused.items()
        ]
    finally:
        dataplane.close()
    remaining += await remove_leftovers(None, (), settings)
    if remaining:
        raise SurveyError(f"not everything could be removed: {'; '.join(remaining)}")
    remains.remove_journal()
    return found


async def plan(agent: Agent) -> list[Operation]:
    """What a running agent would write now, and what it would remove of other back-ends, families and prefixes."""
    operations, families = agent.dataplane.plan(), set(agent.dataplane.filters)
    for backend in Backend:
        for family in FAMILIES:
            if backend is agent.backend and family in families:
                continue
            shares_sets = Backend.NFTABLES not in (backend, agent.backend) and family in families
            found = await _left(backend, family, agent.settings, rules_only=shares_sets)
            operations += [Operation(("remove", f"{backend} {family}", line.partition(": ")[2])) for line in found]
    prefix = agent.settings.endpoint_status_path_prefix
    left = Folders.of(agent.settings).ours(besides=prefix and prefix / FOLDER)
    return operations + [Operation(("remove", FOLDER, describe(folder))) for folder in left]


async def _left(backend: Backend, family: Family, settings: Settings, *, rules_only: bool = False) -> list[str]:
    """What one back-end holds of ours, in words; ``rules_only`` where its sets are in use by another one."""
    packet_filter = make_filter(backend, family, settings)
    try:
        state = await packet_filter.read()
        misfits = packet_filter.sets.misfits() if isinstance(packet_filter, IptablesFilter) else []
    except FilterError:
        return []  # its tools are not installed, so it holds nothing that felixpy could have made here
    finally:
        packet_filter.close()
    lines = [f"{backend} {family}: chain {key}" for key in sorted(state.chains, key=str)]
    if rules_only:
        return lines
    if (state.elements or state.containers) and backend is not Backend.LEGACY:  # both variants have the same sets
        lines.append(f"{backend} {family}: sets with {len(state.elements)} members")
    if backend is not Backend.LEGACY:
        lines += [f"{backend} {family}: the set {name} of another type" for name in misfits]
    return lines + [f"{backend} {family}: {name}" for name in state.foreign]
