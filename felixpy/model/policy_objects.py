"""Policies, profiles, sets and host endpoints as they come off the wire: which fields exist and of which type.

As ``objects``, but for rules: a rule is read by itself (``Any`` here), so that one that cannot be used does not take
its policy with it. A field of a rule that is not listed makes it one that cannot be enforced as it is written.
"""

from __future__ import annotations

from typing import Any

import msgspec

from felixpy.model.objects import EndpointPortObject, Object


class LabelExpression(Object, forbid_unknown_fields=True):
    key: str | None = None
    operator: str | None = None
    values: list[str] | None = None


class LabelSelector(Object, forbid_unknown_fields=True):
    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelExpression] | None = None


class ServiceAccounts(Object, forbid_unknown_fields=True):
    names: list[str] | None = None
    selector: str | None = None


class ServiceReference(Object, forbid_unknown_fields=True):
    name: str | None = None
    namespace: str | None = None


class EntityObject(Object, forbid_unknown_fields=True):
    nets: list[str] | None = None
    not_nets: list[str] | None = None
    selector: str | None = None
    not_selector: str | None = None
    namespace_selector: str | None = None
    service_accounts: ServiceAccounts | None = None
    services: ServiceReference | None = None
    ports: list[int | str] | None = None
    not_ports: list[int | str] | None = None


class IcmpObject(Object, forbid_unknown_fields=True):
    type: int | None = None
    code: int | None = None


class RuleObject(Object, forbid_unknown_fields=True):
    action: str | None = None
    ip_version: int | None = msgspec.field(name="ipVersion", default=None)
    protocol: int | str | None = None
    not_protocol: int | str | None = None
    icmp: IcmpObject | None = None
    not_icmp: IcmpObject | None = msgspec.field(name="notICMP", default=None)
    source: EntityObject | None = None
    destination: EntityObject | None = None
    http: Any = None
    metadata: Any = None


class PolicySpec(Object):
    tier: str | None = None
    order: float | None = None
    selector: str | None = None
    namespace_selector: str | None = None
    service_account_selector: str | None = None
    types: list[str] | None = None
    ingress: list[Any] | None = None
    egress: list[Any] | None = None
    do_not_track: bool | None = None
    pre_dnat: bool | None = msgspec.field(name="preDNAT", default=None)
    apply_on_forward: bool | None = None
    performance_hints: Any = None
    staged_action: str | None = None


class ProfileSpec(Object):
    ingress: list[Any] | None = None
    egress: list[Any] | None = None
    labels_to_apply: dict[str, str] | None = None


class TierSpec(Object):
    order: float | None = None
    default_action: str | None = None


class NetworkSetSpec(Object):
    nets: list[str] | None = None


class HostEndpointSpec(Object):
    node: str | None = None
    interface_name: str | None = None
    expected_ips: list[str] | None = msgspec.field(name="expectedIPs", default=None)
    profiles: list[str] | None = None
    ports: list[EndpointPortObject] | None = None


class IPBlock(Object, forbid_unknown_fields=True):
    cidr: str | None = None
    except_: list[str] | None = msgspec.field(name="except", default=None)


class PeerObject(Object, forbid_unknown_fields=True):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class PortObject(Object, forbid_unknown_fields=True):
    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class IngressObject(Object, forbid_unknown_fields=True):
    peers: list[PeerObject] | None = msgspec.field(name="from", default=None)
    ports: list[PortObject] | None = None


class EgressObject(Object, forbid_unknown_fields=True):
    peers: list[PeerObject] | None = msgspec.field(name="to", default=None)
    ports: list[PortObject] | None = None


class KubernetesPolicySpec(Object):
    pod_selector: LabelSelector | None = None
    policy_types: list[str] | None = None
    ingress: list[Any] | None = None
    egress: list[Any] | None = None
    staged_action: str | None = None


class PodSubject(Object, forbid_unknown_fields=True):
    namespace_selector: LabelSelector | None = None
    pod_selector: LabelSelector | None = None


class ClusterSubject(Object, forbid_unknown_fields=True):
    namespaces: LabelSelector | None = None
    pods: PodSubject | None = None


class ClusterPeer(Object, forbid_unknown_fields=True):
    namespaces: LabelSelector | None = None
    pods: PodSubject | None = None
    networks: list[str] | None = None


class PortRangeObject(Object, forbid_unknown_fields=True):
    start: int | None = None
    end: int | None = None


class ClusterPort(Object, forbid_unknown_fields=True):
    number: int | None = None
    range: PortRangeObject | None = None


class ClusterTransport(Object, forbid_unknown_fields=True):
    destination_port: ClusterPort | None = None


class ClusterProtocol(Object, forbid_unknown_fields=True):
    tcp: ClusterTransport | None = None
    udp: ClusterTransport | None = None
    sctp: ClusterTransport | None = None
    destination_named_port: str | None = None


class ClusterIngress(Object, forbid_unknown_fields=True):
    name: str | None = None
    action: str | None = None
    peers: list[ClusterPeer] | None = msgspec.field(name="from", default=None)
    protocols: list[ClusterProtocol] | None = None


class ClusterEgress(Object, forbid_unknown_fields=True):
    name: str | None = None
    action: str | None = None
    peers: list[ClusterPeer] | None = msgspec.field(name="to", default=None)
    protocols: list[ClusterProtocol] | None = None


class ClusterPolicySpec(Object):
    tier: str | None = None
    priority: int | None = None
    subject: ClusterSubject | None = None
    ingress: list[Any] | None = None
    egress: list[Any] | None = None


class SliceEndpoint(Object):
    addresses: list[str] | None = None


class SlicePortObject(Object):
    protocol: str | None = None
    port: int | None = None


class EndpointSliceObject(Object):
    address_type: str | None = None
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePortObject] | None = None
