"""This node, as it tells itself to others: its record follows interfaces, settings and what other nodes tell.

    interfaces, applied Node, other nodes ──► addresses ──► record ──► this node's own store, and ``nodestate/<name>``

It is told of changes, and polls nothing. Invariant: nothing is decided before the snapshot is known, and nothing is
removed from the kernel before the first decision: a node that starts again finds itself as it was. It must never stop
the agent: what is wrong is a problem of its NodeState.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from felixpy.agent.tunnel_addresses import TunnelAddresses, tunnel_fields
from felixpy.calc.mtu import Tunnel
from felixpy.config import Settings
from felixpy.model.net import FAMILIES, Family, Net
from felixpy.model.parse import parse_resource
from felixpy.model.resources import Kind, Node, ResourceKey, Update
from felixpy.model.wireguard import format_key
from felixpy.node.detection import Surroundings
from felixpy.node.interfaces import read_surroundings
from felixpy.node.own_addresses import NEVER, OwnAddresses, read_variables
from felixpy.node.record import Record
from felixpy.store.store import Store

DETECTION_SECONDS = 5.0
"""``can-reach=`` a host by its name asks DNS; for so long at most."""


class Subject(Protocol):
    """The agent, as far as it is looked at."""

    store: Store
    record: Record
    own_changed: asyncio.Event
    mtu: int

    @property
    def settings(self) -> Settings: ...

    @property
    def wireguard_keys(self) -> Mapping[Family, bytes]: ...

    def families(self) -> tuple[Family, ...]: ...

    def update(self, update: Update) -> None: ...

    def introduced(self) -> None: ...


class OwnNode:
    """Says what this node is. ``publish`` tells others and returns at once.

    Raises:
        DetectionError: a variable of the environment cannot be used.
    """

    def __init__(
        self,
        agent: Subject,
        publish: Callable[[Mapping[str, Any]], None],
        *,
        tunnels: TunnelAddresses | None = None,
        environment: Mapping[str, str] = os.environ,
        surroundings: Callable[[], Surroundings] = read_surroundings,
    ) -> None:
        self._agent = agent
        self._publish = publish
        self._surroundings = surroundings
        self._tunnels = tunnels
        self._name = agent.settings.nodename
        self._key = ResourceKey(Kind.NODE_STATE, self._name)
        self._variables = read_variables(environment)
        self._addresses = OwnAddresses(self._name, self._variables)
        self._found: dict[Family, Net] = {}
        self._problems: list[str] = []
        self._again_in = NEVER
        self._told: tuple[dict[str, Any], str] | None = None
        self._state: Node | None = None
        agent.record.changed = agent.own_changed.set

    async def run(self) -> None:
        """For ever."""
        changed = self._agent.own_changed
        while True:
            try:
                async with asyncio.timeout(None if self._again_in == NEVER else self._again_in):
                    await changed.wait()
            except TimeoutError:
                pass
            changed.clear()
            await self.decide()
            self._agent.introduced()

    async def decide(self) -> None:
        """Look at everything, and say what is new."""
        store = self._agent.store
        applied = store.applied_nodes.get(self._name)
        told = self._state or store.node_states.get(self._name)  # what was said last may be on its way to the store
        if self._variables.follows or self._told is None:
            await self._look(applied, told)
        kept, conflicts = self._addresses.judge(self._found, told, applied, self._others)
        store.watched_addresses = frozenset(net.packed for net in self._found.values())
        self._agent.record.say("addresses", spec={"bgp": _bgp(kept)} if kept else None)
        if self._tunnels is not None:
            self._agent.record.say("given", spec=tunnel_fields(await self._tunnels.find(told)))
            conflicts += self._tunnels.problems.values()
        self._agent.record.say("settings", spec=settings_fields(self._agent.settings))
        self._agent.record.say("wireguard", status=key_fields(self._agent.wireguard_keys))
        self._agent.record.say("underlay", status={"mtu": self._agent.mtu} if self._agent.mtu else None)
        self._tell(kept, told, "; ".join([*self._problems, *conflicts]))

    async def _look(self, applied: Node | None, told: Node | None) -> None:
        families = self._agent.families()
        try:
            async with asyncio.timeout(DETECTION_SECONDS):
                around = await asyncio.to_thread(self._surroundings)
                decided = await asyncio.to_thread(
                    self._addresses.find, families, applied, told, around, time.monotonic()
                )
        except (OSError, TimeoutError) as error:
            self._problems = [f"the node's addresses cannot be found: {error or 'no answer of DNS'}"]
            self._again_in = DETECTION_SECONDS
            return
        self._found, self._problems, self._again_in = decided

    def _others(self, address: bytes) -> Collection[Node]:
        store = self._agent.store
        return [store.nodes[name] for name in store.nodes_at(address) if name != self._name]

    def _tell(self, kept: Mapping[Family, Net], told: Node | None, problem: str) -> None:
        """Say it to this node's own store and to the others, if it is news."""
        document = self._agent.record.document(self._name, _since(told, kept) or _now())
        if (document, problem) == self._told:
            return
        self._told = document, problem
        state = parse_resource(document)
        assert isinstance(state, Node), document
        self._state = state
        self._agent.update(Update(self._key, state, problem, time.monotonic_ns()))
        self._publish(document)


def settings_fields(settings: Settings) -> dict[str, Any]:
    """Tunnel addresses and MACs that the settings of this machine give, as fields of a Node."""
    addresses = {
        Tunnel.VXLAN: settings.ipv4_vxlan_tunnel_address,
        Tunnel.VXLAN_V6: settings.ipv6_vxlan_tunnel_address,
        Tunnel.IPIP: settings.ipip_tunnel_address,
    }
    macs = {"vxlanTunnelMACAddr": settings.vxlan_tunnel_mac, "vxlanTunnelMACAddrV6": settings.vxlan_tunnel_mac_v6}
    found = tunnel_fields({tunnel: packed for tunnel, packed in addresses.items() if packed})
    return found | {name: mac.hex(":") for name, mac in macs.items() if mac}


def key_fields(keys: Mapping[Family, bytes]) -> dict[str, str]:
    """The public keys of this node's WireGuard devices, as fields of a Node's status."""
    names = {Family.V4: "wireguardPublicKey", Family.V6: "wireguardPublicKeyV6"}
    return {names[family]: format_key(key) for family, key in keys.items()}


def _bgp(addresses: Mapping[Family, Net]) -> dict[str, str]:
    return {f"ipv{family.version}Address": str(net) for family, net in addresses.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _since(told: Node | None, addresses: Mapping[Family, Net]) -> str:
    """Since when the node tells these addresses, if it tells them already; empty if it does not."""
    same = told is not None and all(told.address(family) == addresses.get(family) for family in FAMILIES)
    return told.since if told is not None and same else ""
