"""The resources that felixpy understands, as frozen values: what is left of a v3 object once it is valid.

Field names follow ``projectcalico.org/v3``. Only what the agent acts upon is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from msgspec import Struct, field

from felixpy.model.keys import NAMESPACED, Kind, ResourceKey
from felixpy.model.net import Family, Net
from felixpy.model.policy import (
    EndpointPort,
    EndpointSlice,
    HostEndpoint,
    NetworkSet,
    Policy,
    Profile,
    Service,
    Tier,
)
from felixpy.model.selectors import ALL, Selector
from felixpy.model.vtep import vtep_mac

__all__ = [
    "NAMESPACED",
    "POLICY_KINDS",
    "Absent",
    "BlockAffinity",
    "Borrowed",
    "Encapsulation",
    "EndpointPort",
    "EndpointSlice",
    "FelixConfiguration",
    "HostEndpoint",
    "IPAMBlock",
    "IPNat",
    "IPPool",
    "Kind",
    "NetworkSet",
    "Node",
    "Policy",
    "PolicyResource",
    "Profile",
    "Resource",
    "ResourceKey",
    "Service",
    "Tier",
    "Update",
    "WorkloadEndpoint",
]


class Encapsulation(StrEnum):
    """How traffic of a pool crosses nodes, in the words of the operator's ``Installation``."""

    NONE = "None"
    IPIP = "IPIP"
    IPIP_CROSS_SUBNET = "IPIPCrossSubnet"
    VXLAN = "VXLAN"
    VXLAN_CROSS_SUBNET = "VXLANCrossSubnet"

    @property
    def tunnel(self) -> Encapsulation:
        """The tunnel that is used at all, be it to every node or to those of other subnets."""
        return Encapsulation(self.value.removesuffix("CrossSubnet"))


class IPNat(NamedTuple):
    """An address outside that leads to one of a workload's own: a floating IP."""

    external: Net
    internal: Net


class WorkloadEndpoint(Struct, frozen=True):
    """A workload's interface on a node.

    ``addresses`` are /32 and /128 only, without duplicates, in the order given; ``mac`` is six bytes;
    ``created`` is ``metadata.creationTimestamp`` as written (RFC 3339 UTC sorts as text), empty if absent; ``deleted``
    is ``metadata.deletionTimestamp``: if it is not empty, the workload is about to go, and its interface may go first.
    ``labels`` hold namespace, orchestrator and service account, too; those of the profiles are not in them.
    ``ip_nats`` are of one family each and lead to addresses of its own, each external address once; ``problems`` say
    what of the object was left out.
    """

    key: ResourceKey
    node: str
    interface: str
    addresses: tuple[Net, ...]
    mac: bytes | None = None
    allowed_source_prefixes: tuple[Net, ...] = ()
    created: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
    ip_nats: tuple[IPNat, ...] = ()
    problems: tuple[str, ...] = ()
    deleted: str = ""


class IPPool(Struct, frozen=True):
    """A range of workload addresses. A disabled pool still counts for routing and NAT (as in Felix).

    The selectors and ``manual`` (``assignmentMode: Manual``: addresses for those only who ask for the pool) are for
    whoever gives addresses.
    """

    key: ResourceKey
    cidr: Net
    block_size: int
    nat_outgoing: bool = False
    disabled: bool = False
    encapsulation: Encapsulation = Encapsulation.NONE
    allowed_uses: frozenset[str] = frozenset({"Workload", "Tunnel"})
    node_selector: Selector = ALL
    namespace_selector: Selector = ALL
    manual: bool = False

    @property
    def load_balancer_only(self) -> bool:
        """Such a pool does not count as a pool for NAT exclusion (reference/seeds.md item 2)."""
        return self.allowed_uses == {"LoadBalancer"}


class Node(Struct, frozen=True):
    """A node's own addresses, with the prefix length of the node's subnet and host bits kept; and its tunnel ends.

    ``vxlan_ipv4``, ``vxlan_ipv6``, ``ipip_ipv4``, ``wireguard_ipv4`` and ``wireguard_ipv6`` are addresses of tunnel
    devices. ``vxlan_mac``, ``vxlan_mac_ipv6`` are what the Node says; without them MACs follow from its name.
    ``routed`` is false of one that is to take no part in routing. ``since``: when a node that speaks for itself began
    to say so (RFC 3339), empty of what was applied.
    """

    key: ResourceKey
    ipv4: Net | None = None
    ipv6: Net | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    routed: bool = True
    since: str = ""
    vxlan_ipv4: bytes | None = None
    vxlan_ipv6: bytes | None = None
    vxlan_mac: bytes | None = None
    vxlan_mac_ipv6: bytes | None = None
    ipip_ipv4: bytes | None = None
    wireguard_ipv4: bytes | None = None
    wireguard_ipv6: bytes | None = None
    wireguard_public_key: bytes | None = None
    wireguard_public_key_ipv6: bytes | None = None

    def address(self, family: Family) -> Net | None:
        return self.ipv4 if family is Family.V4 else self.ipv6

    def vxlan_address(self, family: Family) -> bytes | None:
        """The address of its VXLAN device of a family."""
        return self.vxlan_ipv4 if family is Family.V4 else self.vxlan_ipv6

    def vtep_mac(self, family: Family) -> bytes:
        """The MAC of its VXLAN device of a family."""
        said = self.vxlan_mac if family is Family.V4 else self.vxlan_mac_ipv6
        return said or vtep_mac(self.key.name, family)

    def wireguard_address(self, family: Family) -> bytes | None:
        """The address of its WireGuard device of a family."""
        return self.wireguard_ipv4 if family is Family.V4 else self.wireguard_ipv6

    def wireguard_key(self, family: Family) -> bytes | None:
        """The public key of its WireGuard device of a family."""
        return self.wireguard_public_key if family is Family.V4 else self.wireguard_public_key_ipv6

    @property
    def tunnel_addresses(self) -> tuple[bytes, ...]:
        """Every address of the tunnel devices that pools need."""
        return tuple(filter(None, (self.vxlan_ipv4, self.vxlan_ipv6, self.ipip_ipv4)))


class Borrowed(NamedTuple):
    """One address of a block that a node other than the block's own uses."""

    address: Net
    node: str


class IPAMBlock(Struct, frozen=True):
    """A block of addresses and the node it belongs to (``host`` is None without host affinity)."""

    key: ResourceKey
    cidr: Net
    host: str | None
    borrowed: tuple[Borrowed, ...] = ()


class BlockAffinity(Struct, frozen=True):
    """The claim of a node on a block; enough for routing on sites that never borrow addresses."""

    key: ResourceKey
    cidr: Net
    host: str


class FelixConfiguration(Struct, frozen=True):
    """Settings from the stream: ``spec`` as written (camelCase names), parsed by ``felixpy.config``."""

    key: ResourceKey
    spec: Mapping[str, Any]
    created: str = ""


class BGPConfiguration(Struct, frozen=True):
    """The ranges of Services' addresses. Only those of ``default`` count; ``problems``: what was left out."""

    key: ResourceKey
    service_ranges: tuple[Net, ...] = ()
    problems: tuple[str, ...] = ()


class Absent(Struct, frozen=True):
    """A valid object which says that its resource is gone: an IPAM block or affinity with ``deleted`` set.

    It is an answer, not an error: whoever holds the resource under ``key`` drops it.
    """

    key: ResourceKey


PolicyResource = Policy | Tier | Profile | NetworkSet | HostEndpoint | Service | EndpointSlice
"""What only the calculation of policy looks at."""

POLICY_KINDS: Final[Mapping[Kind, type[PolicyResource]]] = {
    Kind.PROFILE: Profile,
    Kind.NAMESPACE: Profile,
    Kind.SERVICE_ACCOUNT: Profile,
    Kind.TIER: Tier,
    Kind.NETWORK_POLICY: Policy,
    Kind.GLOBAL_NETWORK_POLICY: Policy,
    Kind.STAGED_NETWORK_POLICY: Policy,
    Kind.STAGED_GLOBAL_NETWORK_POLICY: Policy,
    Kind.STAGED_KUBERNETES_NETWORK_POLICY: Policy,
    Kind.KUBERNETES_NETWORK_POLICY: Policy,
    Kind.CLUSTER_NETWORK_POLICY: Policy,
    Kind.NETWORK_SET: NetworkSet,
    Kind.GLOBAL_NETWORK_SET: NetworkSet,
    Kind.HOST_ENDPOINT: HostEndpoint,
    Kind.SERVICE: Service,
    Kind.ENDPOINT_SLICE: EndpointSlice,
}

Resource = (
    WorkloadEndpoint
    | IPPool
    | Node
    | IPAMBlock
    | BlockAffinity
    | FelixConfiguration
    | BGPConfiguration
    | PolicyResource
)


class Update(NamedTuple):
    """The latest word on one key: a resource, or its absence.

    ``error`` says why a resource could not be used; such a key counts as absent. ``received_ns`` is
    ``time.monotonic_ns()`` at arrival; ``published_ns`` is wall-clock nanoseconds from the publisher, 0 if unknown.
    """

    key: ResourceKey
    resource: Resource | None
    error: str = ""
    received_ns: int = 0
    published_ns: int = 0
