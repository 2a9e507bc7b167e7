"""The agent as a process: its source, what it serves, whom it tells, and how it begins and ends.

Composition only: parts are made, tied together and run side by side until a signal comes or one of them fails. It must
never decide anything about resources or the kernel.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from felixpy.agent import collector
from felixpy.agent.agent import Agent
from felixpy.agent.lock import agent_lock
from felixpy.agent.own_node import OwnNode
from felixpy.agent.status import details, health
from felixpy.agent.supervisor import Supervisor
from felixpy.agent.tunnel_addresses import TunnelAddresses
from felixpy.cni.attachments import LocalAttachments
from felixpy.config import DatastoreType, MqttPeers, Settings
from felixpy.config.local import Local, local_sources
from felixpy.config.table import shown
from felixpy.config.values import IPAMType
from felixpy.node.detection import DetectionError
from felixpy.observe.connections import raise_descriptor_limit
from felixpy.observe.control import serve_control_forever
from felixpy.observe.lag import measure_lag
from felixpy.observe.log import configure_logging, take_libraries
from felixpy.observe.log_limit import LogLimit, tell_forever
from felixpy.observe.metrics import count_log, count_stream
from felixpy.observe.server import serve_latest
from felixpy.plain_error import PlainError
from felixpy.plan.planner import Planner
from felixpy.sources import Source
from felixpy.sources.chosen import datastore
from felixpy.sources.ending import end

if TYPE_CHECKING:
    from felixpy.agent.containers import Containers
    from felixpy.agent.pods import PodSource
    from felixpy.kubernetes.client import Api
    from felixpy.sources.attached import AttachedPods
    from felixpy.sources.kubernetes import KubernetesSource
    from felixpy.sources.mqtt import MqttSource

LEAVE_SECONDS = 3.0
"""How long the parts of the agent may take to say goodbye before they are told again."""


async def run_daemon(local: Local, config: Path | None, limit: LogLimit) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP reads settings and credentials again.

    Raises:
        PlainError, OSError: the agent cannot start, or another one runs; anything else is a bug.
    """
    with agent_lock():
        return await _run(local, config, limit)


async def _run(local: Local, config: Path | None, limit: LogLimit) -> int:
    collector.take_over()
    take_libraries()
    raise_descriptor_limit()
    settings = local.settings
    origins = _origins(settings)
    changes: asyncio.Queue[Settings] = asyncio.Queue()

    def follow(newer: Settings) -> None:
        configure_logging(newer.log_severity_screen, limit, in_thread=True)
        changes.put_nowait(newer)

    agent = Agent(settings, local.sources, status=origins.mqtt, on_settings=follow)
    supervisor = Supervisor()
    containers = _containers(settings, agent, origins)
    if containers is not None:
        await containers.open()  # before the source says that it has told everything
    try:
        introduction = _introduction(settings, agent, origins, containers)
    except DetectionError as error:
        raise PlainError(str(error)) from None
    _tell_of_servers(agent, origins)
    agent.metrics.sampled.append(lambda: count_log(agent.metrics, limit.dropped, limit.errors))

    def reload() -> None:
        if origins.mqtt is not None:
            origins.mqtt.reload()
        try:
            agent.reload(local_sources(config)[0])
        except (PlainError, OSError) as error:  # OSError: a folder that may not be entered
            structlog.get_logger("felixpy").error("settings stay as they were", reason=str(error))

    parts = [
        *_served(settings, agent, origins.mqtt, changes),
        measure_lag(agent.metrics),
        tell_forever(limit),
        agent.run(),
        origins.source.run(agent),
        supervisor.follow(agent.live, agent.is_ready, agent.describe),
        *(containers.parts() if containers is not None else ()),
        introduction,
    ]
    if settings.ip_masq_agent_config:
        parts.append(_masq_agent(settings, settings.ip_masq_agent_config, agent))
    if origins.api is not None:
        parts.append(_events(origins.api, agent))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervisor.reload, reload)
    try:
        await _until_told(parts)
    finally:
        limit.tell()
    return 0


async def _until_told(parts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run parts until SIGTERM or SIGINT comes, or one of them ends; raises what it failed with."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(part) for part in (stop.wait(), *parts)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks, LEAVE_SECONDS)
    for task in done:
        task.result()


# --- whom the agent hears and tells ---------------------------------------------------------------------------------


class _Origins(NamedTuple):
    """Where updates come from, and the servers that are asked or told; None where a node has none of it."""

    source: Source
    mqtt: MqttSource | None
    api: Api | None
    attachments: LocalAttachments | None
    cluster: PodSource | None


def _origins(settings: Settings) -> _Origins:
    store = datastore(settings)
    mqtt = _mqtt_source(settings) if store is DatastoreType.MQTT else None
    has_hub = mqtt is not None and settings.mqtt_peers is MqttPeers.HUB and settings.cni_socket is not None
    api = _api(settings) if has_hub or store is DatastoreType.KUBERNETES else None
    attachments = LocalAttachments() if settings.cni_socket is not None else None
    cluster = _cluster_source(api, settings, attachments, mqtt) if api is not None else None
    return _Origins(cluster or mqtt or _directory_source(settings), mqtt, api, attachments, cluster)


def _tell_of_servers(agent: Agent, origins: _Origins) -> None:
    """The agent knows whom it hears, so that no rule closes the way there; and is told nothing that it has to keep."""
    mqtt, api = origins.mqtt, origins.api
    if mqtt is not None:
        broker_port = mqtt.port
        mqtt.until_taken = agent.opened.wait
        mqtt.on_connected = lambda peer: agent.connected_to(peer, broker_port)
        mqtt.on_connecting = lambda peer: agent.will_ask(peer, broker_port)
        agent.metrics.sampled.append(lambda: count_stream(agent.metrics, mqtt.messages, mqtt.bytes))
    if api is not None:
        api_port = api.access.port
        api.on_connected = lambda peer: agent.connected_to(peer, api_port)


def _introduction(
    settings: Settings, agent: Agent, origins: _Origins, containers: Containers | None
) -> Coroutine[Any, Any, None]:
    """What this node tells of itself.

    Raises:
        DetectionError: a variable of the environment cannot be used.
    """
    tunnels = containers.tunnel_addresses() if containers is not None else None
    if origins.api is not None:
        return _cluster_node(settings, origins.api, agent, tunnels)
    return _own_node(agent, origins.mqtt, tunnels)


def _served(
    settings: Settings, agent: Agent, mqtt: MqttSource | None, changes: asyncio.Queue[Settings]
) -> tuple[Coroutine[Any, Any, None], ...]:
    """Metrics and health by HTTP, and what commands ask."""
    unserved: dict[str, str] = {}

    async def metrics() -> str:
        return (await agent.metrics.latest()).decode()

    answers = {
        "status": lambda: details(agent, unserved),
        "metrics": metrics,
        "settings": lambda: shown(agent.settings),
    }
    questions = {"plan": Planner(agent).plan}
    if mqtt is not None:
        mqtt.questions.answering = questions
    return (
        serve_latest(
            settings, changes, agent.live, agent.is_ready, agent.metrics.latest, lambda: health(agent), unserved
        ),
        serve_control_forever(settings.control_socket, answers, questions),
    )


# --- parts that not every node has: each loads what it needs, which takes a tenth of the start -----------------------


def _mqtt_source(settings: Settings) -> MqttSource:
    from felixpy.sources.mqtt import MqttSource

    return MqttSource(settings, settings.nodename)


def _containers(settings: Settings, agent: Agent, origins: _Origins) -> Containers | None:
    """Who answers the container runtime; None where nobody is to."""
    if origins.attachments is None:
        return None
    from felixpy.agent.containers import Containers

    return Containers(settings, agent, origins.attachments, origins.cluster, origins.api)


def _own_node(agent: Agent, mqtt: MqttSource | None, tunnels: TunnelAddresses | None) -> Coroutine[None, None, None]:
    """What this node says of itself; with a directory it says it to itself alone.

    Raises:
        DetectionError: a variable of the environment cannot be used.
    """
    publish = mqtt.publish_node_state if mqtt is not None else lambda state: None
    own_node = OwnNode(agent, publish, tunnels=tunnels)
    agent.introduces_itself = True
    return own_node.run()


def _masq_agent(settings: Settings, file: Path, agent: Agent) -> Coroutine[None, None, None]:
    from felixpy.agent.masq_agent import MasqAgentFile  # YAML and watchfiles

    reserved = settings.ip_masq_agent_reserved_ranges
    return MasqAgentFile(file, agent.leave_alone, agent.recent, ipv6=settings.ipv6_support, all_reserved=reserved).run()


def _api(settings: Settings) -> Api:
    from felixpy.kubernetes.access import Access
    from felixpy.kubernetes.client import Api
    from felixpy.sources.chosen import cluster_identity

    return Api(Access(cluster_identity(settings)))


def _cluster_source(
    api: Api, settings: Settings, attachments: LocalAttachments | None, mqtt: MqttSource | None
) -> KubernetesSource | AttachedPods:
    """The cluster as the API tells of it, or as a hub does over MQTT."""
    if mqtt is not None and attachments is not None:
        from felixpy.sources.attached import AttachedPods

        return AttachedPods(mqtt, settings.nodename, settings.interface_prefix[0], api, attachments)
    from felixpy.sources.kubernetes import KubernetesSource

    return KubernetesSource(settings, api, attachments)


def _directory_source(settings: Settings) -> Source:
    from felixpy.sources.directory import DirectorySource

    return DirectorySource(settings.resource_directory)


def _cluster_node(
    settings: Settings, api: Api, agent: Agent, tunnels: TunnelAddresses | None
) -> Coroutine[None, None, None]:
    """What this node tells its cluster.

    Raises:
        DetectionError: a variable of the environment cannot be used.
    """
    from felixpy.agent.cluster import ClusterNode, View

    view = View(
        is_ready=lambda: agent.is_ready()[0],
        complete=lambda: agent.complete,
        addresses=lambda: [each.net for each in agent.calculation.host.addresses],
        families=agent.families,
        pool_families=lambda: {pool.cidr.family for pool in agent.store.pools.values()},
        changed=agent.own_changed,
        tunnels=(lambda: tunnels.find(agent.store.nodes.get(settings.nodename))) if tunnels is not None else None,
    )
    # A pod CIDR has to lie in the pool; blocks are taken out of whatever pool there is.
    return ClusterNode(settings.nodename, api, view, any_pool=settings.ipam_type is IPAMType.CALICO).run()


def _events(api: Api, agent: Agent) -> Coroutine[None, None, None]:
    from felixpy.agent.events import Events

    return Events(api, agent.outcome.problems.items).run()
