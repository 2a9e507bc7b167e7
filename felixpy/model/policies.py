"""Calico's policies, tiers, profiles, network sets and host endpoints: defaults and rules of the v3 objects.

Also the profiles that a Namespace and a ServiceAccount are, and the services that rules may name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from felixpy.model.header import Header
from felixpy.model.invalid import Ignored, InvalidResource
from felixpy.model.keys import Kind
from felixpy.model.names import check_interface, check_name
from felixpy.model.net import Net, quote
from felixpy.model.objects import known_fields, read_struct, report_unknown
from felixpy.model.policy import (
    DEFAULT_TIER,
    NAME_LABEL,
    NAMESPACE_LABEL,
    NAMESPACE_PREFIX,
    NAMESPACE_PROFILE,
    SERVICE_ACCOUNT_PREFIX,
    SERVICE_ACCOUNT_PROFILE,
    Direction,
    EndOfTier,
    EndpointSlice,
    HostEndpoint,
    NetworkSet,
    Policy,
    PolicyAction,
    Profile,
    Rule,
    Service,
    ServiceName,
    SlicePort,
    Tier,
)
from felixpy.model.policy_objects import (
    EndpointSliceObject,
    HostEndpointSpec,
    NetworkSetSpec,
    PolicySpec,
    ProfileSpec,
    TierSpec,
)
from felixpy.model.policy_rules import (
    convert_rules,
    endpoint_ports,
    port_protocol,
    read_namespace_selector,
    read_selector,
    read_service_account_selector,
    subject,
)

BUILT_IN_TIERS: Mapping[str, tuple[float, EndOfTier]] = {
    "kube-admin": (1_000.0, EndOfTier.PASS),
    "default": (1_000_000.0, EndOfTier.DENY),
    "kube-baseline": (10_000_000.0, EndOfTier.PASS),
}
"""Order and end of the tiers that exist also without an object; an object must say the same."""

SERVICE_LABEL = "kubernetes.io/service-name"

_GLOBAL_ONLY = frozenset({"namespaceSelector", "doNotTrack", "preDNAT", "applyOnForward"})
_STAGED = frozenset({Kind.STAGED_NETWORK_POLICY, Kind.STAGED_GLOBAL_NETWORK_POLICY})
_POLICY = known_fields(PolicySpec)


def convert_policy(header: Header, ignored: Ignored) -> Policy:
    """NetworkPolicy, GlobalNetworkPolicy and their staged kin.

    Raises:
        InvalidResource: whom it is for, its tier, order or types cannot be told.
    """
    key = header.key
    known = _POLICY - (_GLOBAL_ONLY if key.namespace else frozenset())
    known -= frozenset() if key.kind in _STAGED else frozenset({"stagedAction"})
    report_unknown(header.spec, known, key.kind, "spec", ignored)
    spec = read_struct(header.spec, PolicySpec, "spec")
    namespace = key.namespace or None
    namespaces = None if namespace else spec.namespace_selector
    problems: list[str] = []
    ingress, egress = _types(spec)
    track, dnat, forward = (
        bool(value) and namespace is None for value in (spec.do_not_track, spec.pre_dnat, spec.apply_on_forward)
    )
    _check_host_flags(track, dnat, forward, egress)
    return Policy(
        key=key,
        tier=spec.tier or DEFAULT_TIER,
        order=_order(spec.order, "spec.order"),
        subject=subject(
            read_selector(spec.selector, "spec.selector"),
            read_namespace_selector(namespaces, "spec.namespaceSelector", rule=False),
            read_service_account_selector(spec.service_account_selector, "spec.serviceAccountSelector"),
            namespace,
        ),
        ingress=convert_rules(spec.ingress, Direction.INGRESS, namespace, problems) if ingress else None,
        egress=convert_rules(spec.egress, Direction.EGRESS, namespace, problems) if egress else None,
        do_not_track=track,
        pre_dnat=dnat,
        apply_on_forward=forward,
        staged=key.kind in _STAGED,
        problems=tuple(problems),
    )


def _order(value: float | None, field: str) -> float | None:
    if value is not None and not math.isfinite(value):
        raise InvalidResource("must be a number", field=field)
    return value


def _types(spec: PolicySpec) -> tuple[bool, bool]:
    """Which directions a policy has. Rules of a direction that ``types`` leaves out are not enforced, as in Felix."""
    for index, name in enumerate(spec.types or ()):
        if name not in ("Ingress", "Egress"):
            raise InvalidResource(f"{quote(name)} must be Ingress or Egress", field=f"spec.types[{index}]")
    if spec.types:
        return "Ingress" in spec.types, "Egress" in spec.types
    if spec.pre_dnat:
        return True, False
    return bool(spec.ingress) or not spec.egress, bool(spec.egress)


def _check_host_flags(track: bool, dnat: bool, forward: bool, egress: bool) -> None:
    if track and dnat:
        raise InvalidResource("cannot be used together with doNotTrack", field="spec.preDNAT")
    if (track or dnat) and not forward:
        field = "spec.doNotTrack" if track else "spec.preDNAT"
        raise InvalidResource("needs applyOnForward: true", field=field)
    if dnat and egress:
        raise InvalidResource("policies are for ingress only", field="spec.preDNAT")


def convert_tier(header: Header, ignored: Ignored) -> Tier:
    """
    Raises:
        InvalidResource
    """
    report_unknown(header.spec, _TIER, header.key.kind, "spec", ignored)
    spec = read_struct(header.spec, TierSpec, "spec")
    if spec.default_action not in (None, "", "Deny", "Pass"):
        raise InvalidResource(f"{quote(spec.default_action)} must be Deny or Pass", field="spec.defaultAction")
    order = _order(spec.order, "spec.order")
    end = EndOfTier.PASS if spec.default_action == "Pass" else EndOfTier.DENY
    if built_in := BUILT_IN_TIERS.get(header.key.name):
        if order not in (None, built_in[0]):
            raise InvalidResource(f"of tier {header.key.name} must be {built_in[0]:.0f}", field="spec.order")
        if spec.default_action and end is not built_in[1]:
            raise InvalidResource(f"of tier {header.key.name} must be {built_in[1]}", field="spec.defaultAction")
        order, end = built_in
    return Tier(header.key, order, end)


def convert_profile(header: Header, ignored: Ignored) -> Profile:
    """
    Raises:
        InvalidResource
    """
    report_unknown(header.spec, _PROFILE, header.key.kind, "spec", ignored)
    spec = read_struct(header.spec, ProfileSpec, "spec")
    problems: list[str] = []
    return Profile(
        header.key,
        header.key.name,
        convert_rules(spec.ingress, Direction.INGRESS, None, problems),
        convert_rules(spec.egress, Direction.EGRESS, None, problems),
        spec.labels_to_apply or {},
        tuple(problems),
    )


_ALLOW = (Rule(PolicyAction.ALLOW),)


def convert_namespace(header: Header, ignored: Ignored) -> Profile:
    """The profile ``kns.<name>``: it allows everything, and gives its endpoints the labels of the namespace."""
    name = header.key.name
    labels = _prefixed(header, NAMESPACE_PREFIX)
    return Profile(header.key, f"{NAMESPACE_PROFILE}{name}", _ALLOW, _ALLOW, labels)


def convert_service_account(header: Header, ignored: Ignored) -> Profile:
    """The profile ``ksa.<namespace>.<name>``: it has labels and no rules."""
    key = header.key
    name = f"{SERVICE_ACCOUNT_PROFILE}{key.namespace}.{key.name}"
    return Profile(key, name, labels=_prefixed(header, SERVICE_ACCOUNT_PREFIX))


def _prefixed(header: Header, prefix: str) -> dict[str, str]:
    labels = {prefix + label: value for label, value in (header.metadata.labels or {}).items()}
    labels[prefix + NAME_LABEL] = header.key.name
    return labels


def own_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Labels of an object without those that only a namespace or a service account may give."""
    impersonating = (NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX)
    return {label: value for label, value in (labels or {}).items() if not label.startswith(impersonating)}


def convert_network_set(header: Header, ignored: Ignored) -> NetworkSet:
    """NetworkSet and GlobalNetworkSet. A prefix that is none is left out, and told.

    Raises:
        InvalidResource
    """
    key = header.key
    report_unknown(header.spec, _NETWORK_SET, key.kind, "spec", ignored)
    spec = read_struct(header.spec, NetworkSetSpec, "spec")
    nets: dict[Net, None] = {}
    problems = []
    for index, text in enumerate(spec.nets or ()):
        try:
            nets[Net.parse_masked(text)] = None
        except ValueError as error:
            problems.append(f"spec.nets[{index}]: {error}: it is left out")
    labels = own_labels(header.metadata.labels)
    labels.pop(NAMESPACE_LABEL, None)
    if key.namespace:
        labels[NAMESPACE_LABEL] = key.namespace
    profiles = (f"{NAMESPACE_PROFILE}{key.namespace}",) if key.namespace else ()
    return NetworkSet(key, tuple(nets), labels, profiles, tuple(problems))


def convert_host_endpoint(header: Header, ignored: Ignored) -> HostEndpoint:
    """
    Raises:
        InvalidResource
    """
    report_unknown(header.spec, _HOST_ENDPOINT, header.key.kind, "spec", ignored)
    spec = read_struct(header.spec, HostEndpointSpec, "spec")
    if not spec.interface_name and not spec.expected_ips:
        raise InvalidResource("is missing, and so is expectedIPs", field="spec.interfaceName")
    interface = spec.interface_name or ""
    if interface not in ("", "*"):
        check_interface(interface, "spec.interfaceName")
    labels = own_labels(header.metadata.labels)
    labels.pop(NAMESPACE_LABEL, None)
    return HostEndpoint(
        header.key,
        check_name(spec.node, "spec.node"),
        interface,
        _addresses(spec.expected_ips or (), "spec.expectedIPs"),
        labels,
        profile_names(spec.profiles, "spec.profiles"),
        endpoint_ports(spec.ports or (), "spec.ports"),
    )


def _addresses(texts: Iterable[str], field: str) -> tuple[Net, ...]:
    found: dict[Net, None] = {}
    for index, text in enumerate(texts):
        try:
            net = Net.parse(text)
        except ValueError as error:
            raise InvalidResource(str(error), field=f"{field}[{index}]") from None
        if not net.is_host:
            raise InvalidResource(f"{quote(text)} must be a single address", field=f"{field}[{index}]")
        found[net] = None
    return tuple(found)


def profile_names(names: list[str] | None, field: str) -> tuple[str, ...]:
    """Names of profiles in their order, each once.

    Raises:
        InvalidResource
    """
    for index, name in enumerate(names or ()):
        if not name:
            raise InvalidResource("is empty", field=f"{field}[{index}]")
    return tuple(dict.fromkeys(names or ()))


def convert_service(header: Header, ignored: Ignored) -> Service:
    """A Service says nothing that its EndpointSlices do not say."""
    return Service(header.key)


def convert_endpoint_slice(header: Header, ignored: Ignored) -> EndpointSlice:
    """
    Raises:
        InvalidResource
    """
    body = {field: header.object.get(field) for field in ("addressType", "endpoints", "ports")}
    slice_ = read_struct(body, EndpointSliceObject, "")
    service = (header.metadata.labels or {}).get(SERVICE_LABEL)
    addresses: dict[Net, None] = {}
    if slice_.address_type in ("IPv4", "IPv6"):
        for index, endpoint in enumerate(slice_.endpoints or ()):
            addresses |= dict.fromkeys(_addresses(endpoint.addresses or (), f"endpoints[{index}].addresses"))
    ports = {
        SlicePort(port_protocol(port.protocol, f"ports[{index}].protocol"), port.port)
        for index, port in enumerate(slice_.ports or ())
        if port.port
    }
    name = ServiceName(header.key.namespace, service or "")
    return EndpointSlice(header.key, name, tuple(addresses) if service else (), tuple(sorted(ports)))


_TIER = known_fields(TierSpec)
_PROFILE = known_fields(ProfileSpec)
_NETWORK_SET = known_fields(NetworkSetSpec)
_HOST_ENDPOINT = known_fields(HostEndpointSpec)

CONVERT: Mapping[
    Kind, Callable[[Header, Ignored], Policy | Tier | Profile | NetworkSet | HostEndpoint | Service | EndpointSlice]
] = {
    Kind.NETWORK_POLICY: convert_policy,
    Kind.GLOBAL_NETWORK_POLICY: convert_policy,
    Kind.STAGED_NETWORK_POLICY: convert_policy,
    Kind.STAGED_GLOBAL_NETWORK_POLICY: convert_policy,
    Kind.TIER: convert_tier,
    Kind.PROFILE: convert_profile,
    Kind.NAMESPACE: convert_namespace,
    Kind.SERVICE_ACCOUNT: convert_service_account,
    Kind.NETWORK_SET: convert_network_set,
    Kind.GLOBAL_NETWORK_SET: convert_network_set,
    Kind.HOST_ENDPOINT: convert_host_endpoint,
    Kind.SERVICE: convert_service,
    Kind.ENDPOINT_SLICE: convert_endpoint_slice,
}
