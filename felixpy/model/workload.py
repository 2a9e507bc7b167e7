"""WorkloadEndpoint: from the v3 object to the value that the calculation uses. On the path of every update."""

from __future__ import annotations

import re
from collections.abc import Sequence

from felixpy.model.invalid import InvalidResource
from felixpy.model.names import check_interface, check_name
from felixpy.model.net import Family, Net, family_of, parse_address, quote
from felixpy.model.objects import IPNATObject, Metadata, WorkloadEndpointSpec
from felixpy.model.policies import own_labels, profile_names
from felixpy.model.policy import NAMESPACE_LABEL, ORCHESTRATOR_LABEL, SERVICE_ACCOUNT_LABEL
from felixpy.model.policy_rules import endpoint_ports
from felixpy.model.resources import IPNat, ResourceKey, WorkloadEndpoint
from felixpy.model.special import special_range

MAX_ADDRESSES = 256
MAX_SOURCE_PREFIXES = 256
MAX_IP_NATS = 256

_MAC = re.compile(r"[0-9a-fA-F]{2}(?:(?::[0-9a-fA-F]{2}){5}|(?:-[0-9a-fA-F]{2}){5})")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")


def convert_workload_endpoint(key: ResourceKey, metadata: Metadata, spec: WorkloadEndpointSpec) -> WorkloadEndpoint:
    """Check and convert. No ``ipNetworks`` is a valid endpoint that has no address yet.

    Raises:
        InvalidResource
    """
    _check_gateway(spec.ipv4_gateway, Family.V4, "spec.ipv4Gateway")
    _check_gateway(spec.ipv6_gateway, Family.V6, "spec.ipv6Gateway")
    addresses = _addresses(spec.ip_networks or [])
    nats, problems = ip_nats(spec.ip_nats, addresses) if spec.ip_nats else ((), ())
    return WorkloadEndpoint(
        key=key,
        node=check_name(spec.node, "spec.node"),
        interface=check_interface(spec.interface_name, "spec.interfaceName"),
        addresses=addresses,
        mac=_mac(spec.mac) if spec.mac else None,
        allowed_source_prefixes=_source_prefixes(spec.allow_spoofed_source_prefixes or []),
        created=created(metadata),
        labels=_labels(key, metadata, spec),
        profiles=profile_names(spec.profiles, "spec.profiles"),
        ports=endpoint_ports(spec.ports, "spec.ports") if spec.ports else (),
        ip_nats=nats,
        problems=problems,
        deleted=_timestamp(metadata.deletion_timestamp),
    )


def _labels(key: ResourceKey, metadata: Metadata, spec: WorkloadEndpointSpec) -> dict[str, str]:
    """Its own labels, and those that say where it belongs, whatever the object has in their place."""
    labels = own_labels(metadata.labels)
    labels[NAMESPACE_LABEL] = key.namespace
    for label, value in (
        (ORCHESTRATOR_LABEL, spec.orchestrator),
        (SERVICE_ACCOUNT_LABEL, spec.service_account_name),
    ):
        labels.pop(label, None)
        if value:
            labels[label] = value
    return labels


def created(metadata: Metadata) -> str:
    """``creationTimestamp`` if it is RFC 3339 in UTC, as Kubernetes writes it; otherwise as if it were absent."""
    return _timestamp(metadata.creation_timestamp)


def _timestamp(value: object) -> str:
    return value if isinstance(value, str) and _TIMESTAMP.fullmatch(value) else ""


def _addresses(texts: list[str]) -> tuple[Net, ...]:
    if len(texts) > MAX_ADDRESSES:
        raise InvalidResource(
            f"has {len(texts)} addresses; at most {MAX_ADDRESSES} are possible", field="spec.ipNetworks"
        )
    found: dict[Net, None] = {}
    for index, text in enumerate(texts):
        try:
            net = Net.parse_interface(text)
            _check_unicast(Net.host(net.packed))
        except ValueError as error:
            raise InvalidResource(str(error), field=f"spec.ipNetworks[{index}]") from None
        if not net.is_host:
            reason = f"{quote(text)} must be a single address: write /{net.family.bits} or no prefix length"
            raise InvalidResource(reason, field=f"spec.ipNetworks[{index}]")
        found[net] = None
    return tuple(found)


def _check_unicast(address: Net) -> None:
    if special := special_range(address):
        raise ValueError(f"{address} cannot be a workload's address: it lies in {special}")


def _check_gateway(text: str | None, family: Family, field: str) -> None:
    if not text:
        return
    try:
        packed = parse_address(text)
    except ValueError as error:
        raise InvalidResource(str(error), field=field) from None
    if family_of(packed) is not family:
        raise InvalidResource(f"{text} is not an {family} address", field=field)


def _mac(text: str) -> bytes:
    if not _MAC.fullmatch(text):
        raise InvalidResource(f"{quote(text)} is not a MAC address like ee:ee:ee:ee:ee:ee", field="spec.mac")
    mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    if mac[0] & 1 or not any(mac):
        raise InvalidResource(f"{text} is not the MAC address of one interface", field="spec.mac")
    return mac


def ip_nats(entries: Sequence[IPNATObject], addresses: tuple[Net, ...]) -> tuple[tuple[IPNat, ...], tuple[str, ...]]:
    """Floating addresses, and what is wrong with those that are left out: a workload keeps its own network."""
    if len(entries) > MAX_IP_NATS:
        raise InvalidResource(f"has {len(entries)} entries; at most {MAX_IP_NATS} are possible", field="spec.ipNATs")
    found: dict[Net, IPNat] = {}
    problems = []
    for index, entry in enumerate(entries):
        try:
            nat = _ip_nat(entry, addresses)
            if found.setdefault(nat.external, nat) != nat:
                raise ValueError(f"{nat.external} leads to {found[nat.external].internal} already")
        except ValueError as error:
            problems.append(f"spec.ipNATs[{index}] is left out: {error}")
    return tuple(found.values()), tuple(problems)


def _ip_nat(entry: IPNATObject, addresses: tuple[Net, ...]) -> IPNat:
    external = Net.host(parse_address(entry.external_ip or ""))
    internal = Net.host(parse_address(entry.internal_ip or ""))
    _check_unicast(external)
    if external.family is not internal.family:
        raise ValueError(f"{external} and {internal} are of two families")
    if internal not in addresses:
        raise ValueError(f"{internal} is not in spec.ipNetworks")
    if external in addresses:
        raise ValueError(f"{external} is the workload's own already")
    return IPNat(external, internal)


def _source_prefixes(texts: list[str]) -> tuple[Net, ...]:
    field = "spec.allowSpoofedSourcePrefixes"
    if len(texts) > MAX_SOURCE_PREFIXES:
        raise InvalidResource(f"has {len(texts)} prefixes; at most {MAX_SOURCE_PREFIXES} are possible", field=field)
    found: dict[Net, None] = {}
    for index, text in enumerate(texts):
        try:
            found[Net.parse_masked(text)] = None  # Calico drops host bits here
        except ValueError as error:
            raise InvalidResource(str(error), field=f"{field}[{index}]") from None
    return tuple(found)
