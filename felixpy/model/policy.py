"""Policies and what they speak of, as frozen values: what is left of the objects once they are valid.

Every kind of policy (Calico's, Kubernetes' NetworkPolicy and ClusterNetworkPolicy) is one ``Policy``: its selectors are
whole (namespaces and service accounts are in them), its order and tier are set. A rule that cannot be enforced as it is
written is in it in the form that lets nothing more through, and ``problems`` names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct, field

from felixpy.model.keys import ResourceKey
from felixpy.model.net import Family, Net
from felixpy.model.selectors import Selector

NAMESPACE_LABEL = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator"
SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount"
NAME_LABEL = "projectcalico.org/name"
NAMESPACE_PREFIX = "pcns."
SERVICE_ACCOUNT_PREFIX = "pcsa."
NAMESPACE_PROFILE = "kns."
SERVICE_ACCOUNT_PROFILE = "ksa."

DEFAULT_TIER = "default"


class Direction(StrEnum):
    """Seen from the endpoint: ingress is towards it."""

    INGRESS = "ingress"
    EGRESS = "egress"


class PolicyAction(StrEnum):
    """What a rule does with a packet that matches. Log goes on with the next rule."""

    ALLOW = "Allow"
    DENY = "Deny"
    PASS = "Pass"
    LOG = "Log"


class EndOfTier(StrEnum):
    """What happens to a packet that no policy of a tier decided."""

    DENY = "Deny"
    PASS = "Pass"


class Ports(NamedTuple):
    """Ports from ``first`` to ``last``, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}:{self.last}"


class Icmp(NamedTuple):
    """ICMP (or ICMPv6) type, and code if not None. Negated, a pair is negated as a pair."""

    type: int
    code: int | None = None


class ServiceName(NamedTuple):
    """A Service by its name."""

    namespace: str
    name: str


class EndpointPort(NamedTuple):
    """A port of an endpoint that has a name; ``protocol`` is TCP (6), UDP (17) or SCTP (132)."""

    name: str
    protocol: int
    port: int


class Entity(Struct, frozen=True):
    """What a rule asks of one end of a packet: all that is set must hold.

    ``selector``: endpoints and network sets that match; None asks nothing. ``not_selector``: none of those.
    ``ports`` and ``named_ports`` together are one list of which one must hold, and so are the negated ones.
    """

    nets: tuple[Net, ...] = ()
    not_nets: tuple[Net, ...] = ()
    selector: Selector | None = None
    not_selector: Selector | None = None
    service: ServiceName | None = None
    ports: tuple[Ports, ...] = ()
    named_ports: tuple[str, ...] = ()
    not_ports: tuple[Ports, ...] = ()
    not_named_ports: tuple[str, ...] = ()


ANY = Entity()


class Rule(Struct, frozen=True):
    """A rule of a policy or profile. ``family`` None: both. ``position`` is its number as written, from 0."""

    action: PolicyAction
    family: Family | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    icmp: Icmp | None = None
    not_icmp: Icmp | None = None
    source: Entity = ANY
    destination: Entity = ANY
    position: int = 0


class Policy(Struct, frozen=True):
    """A policy of any kind. ``order`` None is after all that have one. ``staged``: shown, never enforced.

    ``ingress`` and ``egress`` are None where the policy has not that direction: then it does not isolate in it.
    """

    key: ResourceKey
    tier: str
    order: float | None
    subject: Selector
    ingress: tuple[Rule, ...] | None
    egress: tuple[Rule, ...] | None
    do_not_track: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False
    staged: bool = False
    problems: tuple[str, ...] = ()


class Tier(Struct, frozen=True):
    """A tier of policies; ``order`` None is after all that have one."""

    key: ResourceKey
    order: float | None = None
    end: EndOfTier = EndOfTier.DENY


class Profile(Struct, frozen=True):
    """Rules for endpoints that no policy decides, and labels for those that name it.

    From a Profile, or from a Namespace or ServiceAccount, whose profiles are ``kns.<name>`` and ``ksa.<ns>.<name>``.
    """

    key: ResourceKey
    name: str
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class NetworkSet(Struct, frozen=True):
    """Prefixes with labels, global or of a namespace (which is one of the labels)."""

    key: ResourceKey
    nets: tuple[Net, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class HostEndpoint(Struct, frozen=True):
    """An interface of a node itself; ``interface`` is empty if it is told by ``addresses``, ``*`` for all."""

    key: ResourceKey
    node: str
    interface: str
    addresses: tuple[Net, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class Service(Struct, frozen=True):
    """A Service as far as a rule's ``services`` needs it: that it exists."""

    key: ResourceKey


class SlicePort(NamedTuple):
    """A port of an EndpointSlice."""

    protocol: int
    port: int


class EndpointSlice(Struct, frozen=True):
    """Some of the endpoints of a Service, ready or not: addresses, and ports that all of them have."""

    key: ResourceKey
    service: ServiceName
    addresses: tuple[Net, ...]
    ports: tuple[SlicePort, ...]
