"""This node's HostEndpoints: which interface each has, and what its traffic is asked. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from felixpy.calc.policy.chains_in_use import ChainsInUse
from felixpy.calc.policy.classes import HostEndpointChains, HostEndpointKey, TierChains, Use, comment_text
from felixpy.calc.policy.in_force import InForce, PolicyState
from felixpy.calc.policy.order import ChainId, asked_profiles, asked_tiers
from felixpy.calc.policy.output import Output
from felixpy.calc.policy.selection import Held, NamedSelection, ProfileLabels, Watched
from felixpy.model.net import FAMILIES, Net
from felixpy.model.policy import HostEndpoint
from felixpy.model.resources import ResourceKey
from felixpy.store.peers import Identity

Addresses = tuple[tuple[str, bytes], ...]
"""Interfaces of the node, and the addresses that they have."""


class HostEndpoints:
    """Host endpoints, and the chains that they ask."""

    def __init__(
        self,
        labels: ProfileLabels,
        in_force: InForce,
        chains: ChainsInUse,
        output: Output,
        problems: dict[ResourceKey, str],
        addresses: Addresses,
    ) -> None:
        self.hosts = NamedSelection(labels, self._moved)
        self._in_force = in_force
        self._chains = chains
        self._output = output
        self._problems = problems
        self._addresses = addresses
        self._local: dict[ResourceKey, HostEndpoint] = {}
        self._used: Counter[ChainId] = Counter()
        self._is_complete = False
        self._is_dirty = False

    def touch(self) -> None:
        """They may be asked something else."""
        self._is_dirty = True

    def complete(self) -> None:
        self._is_complete = True
        self.touch()

    def use_addresses(self, addresses: Addresses) -> None:
        if addresses != self._addresses:
            self._addresses = addresses
            self.touch()

    def put(self, key: ResourceKey, endpoint: HostEndpoint | None, identity: Identity | None) -> None:
        """One of this node, or None where it is gone or another node's."""
        if endpoint is not None:
            self._local[key] = endpoint
        elif key in self._local:
            del self._local[key]
            self._problems.pop(key, None)
        else:
            return
        self.hosts.put(key, identity if endpoint is not None else None)
        self.touch()

    def _moved(self, held: Held, lost: Iterable[Watched], gained: Iterable[Watched]) -> None:
        self.touch()

    def calculate(self) -> None:
        """All of this node's: there are few, and they compete for interfaces."""
        if not self._is_dirty:
            return
        self._is_dirty = False
        values: dict[HostEndpointKey, HostEndpointChains] = {}
        chains: Counter[ChainId] = Counter()
        for interface, endpoint in self._interfaces().items():
            value, used = self._asked_host(endpoint)
            values |= {HostEndpointKey(family, interface): value for family in FAMILIES}
            chains.update(used)
        self._chains.acquire((chains - self._used).elements())
        self._chains.release((self._used - chains).elements())
        self._used = chains
        for key in [key for key in self._output.entries if isinstance(key, HostEndpointKey) and key not in values]:
            self._output.drop(key)
        for key, value in values.items():
            self._output.put(key, value)

    def _interfaces(self) -> dict[str, HostEndpoint]:
        """Which host endpoint an interface has: of several the first by name."""
        found: dict[str, HostEndpoint] = {}
        for key, endpoint in sorted(self._local.items()):
            interface = endpoint.interface or self._interface_with(endpoint.addresses)
            if interface is None:
                self._problems[key] = "no interface of this node has one of spec.expectedIPs"
            elif interface in found:
                self._problems[key] = f"interface {interface} is already that of {found[interface].key}"
            else:
                self._problems.pop(key, None)
                found[interface] = endpoint
        return found if self._is_complete else {}

    def _interface_with(self, addresses: tuple[Net, ...]) -> str | None:
        wanted = {address.packed for address in addresses}
        return next((interface for interface, packed in self._addresses if packed in wanted), None)

    def _asked_host(self, endpoint: HostEndpoint) -> tuple[HostEndpointChains, list[ChainId]]:
        held = self.hosts.held_of(endpoint.key)
        policies = list(self._in_force.selecting(held)) if held else []
        used: list[ChainId] = []

        def tiers(of: Iterable[PolicyState], use: Use, *, ends: bool = True) -> tuple[tuple[TierChains, ...], bool]:
            asked = [state.asked(use) for state in of]
            found, chains, decided = asked_tiers(asked, self._in_force.tiers, ends=ends)
            used.extend(chains)
            return found, decided

        def profiles(use: Use, decided: bool) -> tuple[str, ...]:
            chains = (
                () if decided else asked_profiles(endpoint.profiles, self._in_force.profiles.get, use, fold=False)[0]
            )
            used.extend(chains)
            return tuple(chain.name for chain in chains)

        pre_dnat = [state for state in policies if state.policy.pre_dnat]
        untracked = [state for state in policies if state.policy.do_not_track]
        normal = [state for state in policies if not (state.policy.do_not_track or state.policy.pre_dnat)]
        forward = [state for state in normal if state.policy.apply_on_forward]
        ingress, ingress_decided = tiers(normal, Use.HOST_INGRESS)
        egress, egress_decided = tiers(normal, Use.HOST_EGRESS)
        value = HostEndpointChains(
            ingress=ingress,
            egress=egress,
            profiles_ingress=profiles(Use.HOST_INGRESS, ingress_decided),
            profiles_egress=profiles(Use.HOST_EGRESS, egress_decided),
            forward_ingress=tiers(forward, Use.FORWARD_INGRESS)[0],
            forward_egress=tiers(forward, Use.FORWARD_EGRESS)[0],
            pre_dnat=tiers(pre_dnat, Use.PRE_DNAT, ends=False)[0],
            untracked_ingress=tiers(untracked, Use.UNTRACKED_INGRESS, ends=False)[0],
            untracked_egress=tiers(untracked, Use.UNTRACKED_EGRESS, ends=False)[0],
            comment=comment_text(str(endpoint.key)),
        )
        return value, used
