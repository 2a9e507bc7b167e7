"""Pods as the API has them -> WorkloadEndpoints, as Calico converts them. Pure.

Source: libcalico-go, ``backend/k8s/conversion/workload_endpoint_default.go``. A pod on the host's network, one that has
no node yet and one that is finished are no endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from felixpy.kubernetes.names import endpoint_key, interface_name
from felixpy.model.invalid import InvalidResource
from felixpy.model.net import Family, format_address, quote
from felixpy.model.objects import EndpointPortObject, IPNATObject, Metadata, WorkloadEndpointSpec
from felixpy.model.resources import ResourceKey, WorkloadEndpoint
from felixpy.model.workload import convert_workload_endpoint, ip_nats

CNI = "cni.projectcalico.org/"
POD_IPS = "cni.projectcalico.org/podIPs"
POD_IP = "cni.projectcalico.org/podIP"
AWS_POD_IPS = "vpc.amazonaws.com/pod-ips"
SPOOFED = "cni.projectcalico.org/allowedSourcePrefixes"
FLOATING = "cni.projectcalico.org/floatingIPs"

ORCHESTRATOR = "k8s"
_MOST_LABEL_CHARACTERS = 62
"""One less than a label may have: Calico's own limit."""

_FINISHED = frozenset({"Succeeded", "Failed", "Completed"})


class _Camel(msgspec.Struct, rename="camel"):
    pass


class PodMetadata(_Camel):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class ContainerPort(_Camel):
    name: str = ""
    container_port: int = 0
    protocol: str = ""


class Container(_Camel):
    ports: list[ContainerPort] | None = None


class PodSpec(_Camel):
    node_name: str = ""
    host_network: bool = False
    service_account_name: str = ""
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodAddress(_Camel):
    ip: str = ""


class PodStatus(_Camel):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: list[PodAddress] | None = msgspec.field(name="podIPs", default=None)


class Pod(_Camel):
    metadata: PodMetadata
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class PodFacts(Struct, frozen=True):
    """What is kept of a pod: who it is, and the endpoint that it would have.

    ``error`` says why there can be none; ``endpoint`` is None, too, for a pod that has none by its nature.
    ``annotated`` says that Calico's CNI plugin wrote the addresses, and not the kubelet; ``asks`` are the annotations
    by which a pod asks for something of the network.
    """

    namespace: str
    name: str
    uid: str = ""
    endpoint: WorkloadEndpoint | None = None
    error: str = ""
    annotated: bool = False
    asks: tuple[tuple[str, str], ...] = ()


_POD = msgspec.json.Decoder(Pod)


def decode_pod(raw: msgspec.Raw, prefix: str) -> PodFacts:
    """A pod's facts; ``prefix`` is that of workload interfaces."""
    try:
        pod = _POD.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return PodFacts("", "", error=f"not a pod: {error}")
    return pod_facts(pod, prefix)


def pod_facts(pod: Pod, prefix: str) -> PodFacts:
    """A pod's facts, with the addresses that the API tells of."""
    metadata, spec = pod.metadata, pod.spec
    namespace, name = metadata.namespace, metadata.name
    facts = PodFacts(namespace, name, metadata.uid, asks=asked(metadata.annotations or {}))
    if not spec.node_name or spec.host_network or is_finished(pod):
        return facts
    addresses, annotated = told_addresses(pod)
    annotations, account = metadata.annotations or {}, spec.service_account_name
    endpoint = WorkloadEndpointSpec(
        node=spec.node_name,
        interface_name=interface_name(prefix, namespace, name),
        ip_networks=addresses,
        allow_spoofed_source_prefixes=_json_list(annotations.get(SPOOFED)),
        orchestrator=ORCHESTRATOR,
        profiles=profiles(pod),
        ports=named_ports(pod),
        service_account_name=account if account and len(account) <= _MOST_LABEL_CHARACTERS else None,
    )
    try:
        converted = convert_workload_endpoint(
            pod_key(facts, spec.node_name),
            Metadata(name, namespace, metadata.labels, metadata.creation_timestamp, metadata.deletion_timestamp),
            endpoint,
        )
    except InvalidResource as error:
        return replace(facts, error=str(error))
    return replace(facts, endpoint=with_floating(converted, facts), annotated=annotated)


def with_floating(endpoint: WorkloadEndpoint, pod: PodFacts) -> WorkloadEndpoint:
    """The endpoint with the floating addresses that its pod asks for: each leads to the address of its family.

    Of a family in which the pod has no address there is none, as in Calico. ``endpoint`` has its addresses already.
    """
    written = dict(pod.asks).get(FLOATING)
    if not written:
        return endpoint
    external = _json_list(written)
    if external is None:
        problem = f'annotation {FLOATING} is left out: {quote(written)} is not a list of texts like ["192.0.2.9"]'
        return replace(endpoint, problems=(problem,))
    own = {address.family: address for address in reversed(endpoint.addresses)}
    asked_for = [(text, own.get(Family.V6 if ":" in text else Family.V4)) for text in external]
    entries = [IPNATObject(format_address(to.packed), text) for text, to in asked_for if to is not None]
    try:
        nats, problems = ip_nats(entries, endpoint.addresses)
    except InvalidResource as error:
        return replace(endpoint, problems=(f"annotation {FLOATING} is left out: {error}",))
    return replace(endpoint, ip_nats=nats, problems=problems)


def asked(annotations: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Annotations of Calico's CNI plugin that ask for something; what it notes there itself is left out."""
    told = {POD_IPS, POD_IP, f"{CNI}containerID"}
    return tuple(
        sorted((name, text) for name, text in annotations.items() if name.startswith(CNI) and name not in told)
    )


def pod_key(pod: PodFacts, node: str) -> ResourceKey:
    return endpoint_key(node, pod.namespace, pod.name)


def is_finished(pod: Pod) -> bool:
    """Whether the pod's addresses may be others' by now.

    A pod that is being deleted still has its own until the CNI plugin, having released them, empties the annotation.
    """
    if pod.status.phase in _FINISHED:
        return True
    annotations = pod.metadata.annotations or {}
    return pod.metadata.deletion_timestamp is not None and annotations.get(POD_IP) == ""


def told_addresses(pod: Pod) -> tuple[list[str], bool]:
    """Addresses as text, and whether annotations tell them: the plugin writes these before the kubelet its status."""
    status, annotations = pod.status, pod.metadata.annotations or {}
    by_annotation = _listed(annotations.get(POD_IPS)) or _listed(annotations.get(POD_IP))
    if found := [each.ip for each in status.pod_ips or () if each.ip] or _listed(status.pod_ip):
        return found, bool(by_annotation)
    if by_annotation:
        return by_annotation, True
    return _listed(annotations.get(AWS_POD_IPS)), False


def profiles(pod: Pod) -> list[str]:
    """Namespace and service account as profiles, the namespace first."""
    account = pod.spec.service_account_name
    found = [f"kns.{pod.metadata.namespace}"]
    if account:
        found.append(f"ksa.{pod.metadata.namespace}.{account}")
    return found


def named_ports(pod: Pod) -> list[EndpointPortObject]:
    """Ports of containers that have a name, as a WorkloadEndpoint lists them; init containers' too, as in Calico."""
    found: list[EndpointPortObject] = []
    for container in (*(pod.spec.containers or ()), *(pod.spec.init_containers or ())):
        for port in container.ports or ():
            protocol = port.protocol or "TCP"
            if port.name and port.container_port and protocol in ("TCP", "UDP", "SCTP"):
                found.append(EndpointPortObject(port.name, protocol, port.container_port))
    return found


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _json_list(text: str | None) -> list[str] | None:
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.DecodeError:
        return None
