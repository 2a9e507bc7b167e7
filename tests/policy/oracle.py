"""What policies mean, read off the objects as users write them: a second opinion that shares no code with the product.

Slow and short on purpose: every question is answered from all objects. No sets, no chains, no classes. It knows valid
objects only; what becomes of invalid ones is a matter of the model's tests.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Labels = dict[str, str]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132, "udplite": 136}
BUILT_IN = {"kube-admin": (1e3, "Pass"), "default": (1e6, "Deny"), "kube-baseline": (1e7, "Pass")}
NAMESPACE = "projectcalico.org/namespace"


@dataclass
class Question:
    """A packet of a new connection."""

    source: str
    destination: str
    protocol: int = 6
    source_port: int = 40000
    port: int = 80
    icmp: tuple[int, int] = (8, 0)

    def end(self, side: str) -> Address:
        return ipaddress.ip_address(self.source if side == "source" else self.destination)

    def port_of(self, side: str) -> int:
        return self.source_port if side == "source" else self.port

    @property
    def version(self) -> int:
        return self.end("source").version


@dataclass
class Thing:
    """An endpoint or a network set."""

    name: str
    labels: Labels
    nets: list[Any]
    ports: list[tuple[str, int, int]] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    is_endpoint: bool = True


# --- selectors ---------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"\s*(&&|\|\||!=|==|[!(){},]|'[^']*'|\"[^\"]*\"|not\s+in|starts\s+with|ends\s+with|[A-Za-z0-9_./-]+)"
)


def selects(text: str, labels: Labels) -> bool:
    """Evaluates while it reads."""
    tokens = _TOKEN.findall(text)
    if not tokens:
        return True
    at = 0

    def take(*wanted: str) -> bool:
        nonlocal at
        if at < len(tokens) and tokens[at] in wanted:
            at += 1
            return True
        return False

    def either() -> bool:
        value = both()
        while take("||"):
            value = both() or value
        return value

    def both() -> bool:
        value = one()
        while take("&&"):
            value = one() and value
        return value

    def one() -> bool:
        nonlocal at
        if take("!"):
            return not one()
        if take("("):
            value = either()
            assert take(")")
            return value
        word = tokens[at]
        at += 1
        if word in ("all", "global") and take("("):
            assert take(")")
            return True
        if word == "has" and take("("):
            label = tokens[at]
            at += 1
            assert take(")")
            return label in labels
        operator = re.sub(r"\s", "", tokens[at])
        at += 1
        if operator in ("in", "notin"):
            assert take("{")
            values = []
            while not take("}"):
                values.append(tokens[at][1:-1])
                at += 1
                take(",")
            return (labels.get(word) in values) is (operator == "in")
        value = tokens[at][1:-1]
        at += 1
        have = labels.get(word)
        answers: dict[str, Callable[[], bool]] = {
            "==": lambda: have == value,
            "!=": lambda: have != value,
            "contains": lambda: have is not None and value in have,
            "startswith": lambda: have is not None and have.startswith(value),
            "endswith": lambda: have is not None and have.endswith(value),
        }
        return answers[operator]()

    found = either()
    assert at == len(tokens), (text, tokens[at:])
    return found


def selects_labels(selector: Object | None, labels: Labels) -> bool:
    """Kubernetes' form."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for item in selector.get("matchExpressions") or ():
        have, values = labels.get(item["key"]), item.get("values") or []
        answer = {
            "In": have is not None and have in values,
            "NotIn": have not in values,
            "Exists": have is not None,
            "DoesNotExist": have is None,
        }
        if not answer[item["operator"]]:
            return False
    return True


def without(labels: Labels, prefix: str) -> Labels:
    """Labels that begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in labels.items() if key.startswith(prefix)}


# --- the oracle --------------------------------------------------------------------------------------------------


class Oracle:
    def __init__(self, objects: Iterable[Object], without_profile: str = "Deny") -> None:
        self.objects = list(objects)
        self.without_profile = without_profile
        self.profiles = self._profiles()
        self.things = list(self._things())
        self.tiers = {o["metadata"]["name"]: o["spec"] for o in self._of("Tier")}

    def _of(self, *kinds: str) -> Iterator[Object]:
        return (o for o in self.objects if o["kind"] in kinds)

    def _profiles(self) -> dict[str, Object]:
        found: dict[str, Object] = {}
        for o in self._of("Namespace"):
            name, labels = o["metadata"]["name"], o["metadata"].get("labels") or {}
            marked = {f"pcns.{k}": v for k, v in labels.items()} | {"pcns.projectcalico.org/name": name}
            everything = [{"action": "Allow"}]
            found[f"kns.{name}"] = {"ingress": everything, "egress": everything, "labelsToApply": marked}
        for o in self._of("ServiceAccount"):
            name, labels = o["metadata"]["name"], o["metadata"].get("labels") or {}
            marked = {f"pcsa.{k}": v for k, v in labels.items()} | {"pcsa.projectcalico.org/name": name}
            found[f"ksa.{o['metadata']['namespace']}.{name}"] = {"labelsToApply": marked}
        for o in self._of("Profile"):
            found[o["metadata"]["name"]] = o["spec"]
        return found

    def _things(self) -> Iterator[Thing]:
        for o in self._of("WorkloadEndpoint", "NetworkSet", "GlobalNetworkSet", "HostEndpoint"):
            spec, namespace = o["spec"], o["metadata"].get("namespace")
            profiles = spec.get("profiles") or []
            if o["kind"] == "NetworkSet":
                profiles = [f"kns.{namespace}"]
            labels: Labels = {}
            for name in reversed(profiles):
                labels |= self.profiles.get(name, {}).get("labelsToApply") or {}
            own = o["metadata"].get("labels") or {}
            labels |= {k: v for k, v in own.items() if not k.startswith(("pcns.", "pcsa."))}
            if namespace:
                labels[NAMESPACE] = namespace
            if spec.get("orchestrator"):
                labels["projectcalico.org/orchestrator"] = spec["orchestrator"]
            if spec.get("serviceAccountName"):
                labels["projectcalico.org/serviceaccount"] = spec["serviceAccountName"]
            texts = spec.get("ipNetworks") or spec.get("expectedIPs") or spec.get("nets") or []
            ports = [(p["name"], PROTOCOLS[p["protocol"].lower()], p["port"]) for p in spec.get("ports") or []]
            nets = [ipaddress.ip_network(text, strict=False) for text in texts]
            is_endpoint = "Set" not in o["kind"]
            yield Thing(o["metadata"]["name"], labels, nets, ports, profiles, is_endpoint)

    def allows(self, endpoint: str, direction: str, question: Question) -> bool:
        """Whether a workload endpoint's policies let a packet through; ``direction`` is ingress or egress."""
        return self.decide(endpoint, direction, question) == "Allow"

    def decide(self, endpoint: str, direction: str, question: Question) -> str:
        thing = next(thing for thing in self.things if thing.name == endpoint and thing.is_endpoint)
        tiers: dict[str, list[tuple[float, str, list[Object]]]] = {}
        for tier, order, tie, rules in self._policies(thing, direction):
            tiers.setdefault(tier, []).append((order, tie, rules))
        for name in sorted(tiers, key=self._tier_rank):
            verdict = self._tier(sorted(tiers[name], key=lambda one: one[:2]), question)
            if verdict is None:
                verdict = self._end_of(name)
            if verdict != "Pass":
                return verdict
        if not thing.profiles:
            return "Deny" if tiers else self.without_profile
        for name in thing.profiles:
            if name not in self.profiles:
                return "Deny"
            verdict = self._tier([(0, "", self.profiles[name].get(direction) or [])], question)
            if verdict in ("Allow", "Deny"):
                return verdict
        return "Deny"

    def _tier(self, policies: list[tuple[float, str, list[Object]]], question: Question) -> str | None:
        for _, _, rules in policies:
            for rule in rules:
                if rule["action"] != "Log" and self._matches(rule, question):
                    return str(rule["action"])
        return None

    def _tier_rank(self, name: str) -> tuple[bool, float, str]:
        if name in BUILT_IN:
            return False, BUILT_IN[name][0], name
        if name not in self.tiers:
            return True, 0, name
        order = self.tiers[name].get("order")
        return False, math.inf if order is None else order, name

    def _end_of(self, name: str) -> str:
        if name in BUILT_IN:
            return BUILT_IN[name][1]
        return self.tiers.get(name, {}).get("defaultAction") or "Deny"

    # --- policies ------------------------------------------------------------------------------------------------

    def _policies(self, thing: Thing, direction: str) -> Iterator[tuple[str, float, str, list[Object]]]:
        """Tier, order, tie and rules of the policies that select an endpoint and have the direction."""
        for o in self.objects:
            spec, kind = o["spec"], o["kind"]
            name, namespace = o["metadata"]["name"], o["metadata"].get("namespace") or ""
            order = spec.get("order")
            rank = math.inf if order is None else order
            if kind == "ClusterNetworkPolicy":
                if self._cluster_subject(spec["subject"], thing) and spec.get(direction):
                    tier = {"Admin": "kube-admin", "Baseline": "kube-baseline"}[spec["tier"]]
                    rules = list(self._cluster_rules(spec[direction], direction))
                    yield tier, spec["priority"], f"{name}//{kind}", rules
            elif kind == "NetworkPolicy" and o["apiVersion"].startswith("networking"):
                types = spec.get("policyTypes") or (["Ingress", "Egress"] if "egress" in spec else ["Ingress"])
                selected = self._is_pod(thing, namespace) and selects_labels(spec.get("podSelector"), thing.labels)
                if direction.capitalize() in types and selected:
                    rules = list(self._kubernetes_rules(spec.get(direction) or [], direction, namespace))
                    yield "default", 1000, f"{name}/{namespace}/KubernetesNetworkPolicy", rules
            elif kind in ("NetworkPolicy", "GlobalNetworkPolicy"):
                for_hosts = spec.get("preDNAT") or spec.get("doNotTrack")
                selected = not for_hosts and self._subject(spec, namespace, thing)
                if selected and direction in self._types(spec):
                    rules = [{**rule, "namespace": namespace} for rule in spec.get(direction) or []]
                    yield spec.get("tier") or "default", rank, f"{name}/{namespace}/{kind}", rules

    @staticmethod
    def _types(spec: Object) -> list[str]:
        if spec.get("types"):
            return [word.lower() for word in spec["types"]]
        if not spec.get("egress"):
            return ["ingress"]
        return ["ingress", "egress"] if spec.get("ingress") else ["egress"]

    def _subject(self, spec: Object, namespace: str, thing: Thing) -> bool:
        labels = thing.labels
        if namespace and labels.get(NAMESPACE) != namespace:
            return False
        account = spec.get("serviceAccountSelector")
        return (
            selects(spec.get("selector") or "", labels)
            and (not account or self._account(account, labels))
            and (not spec.get("namespaceSelector") or self._namespace(spec["namespaceSelector"], labels))
        )

    @staticmethod
    def _namespace(text: str, labels: Labels) -> bool:
        if text == "all()":
            return NAMESPACE in labels
        if text == "global()":
            return NAMESPACE not in labels
        return selects(text, without(labels, "pcns."))

    @staticmethod
    def _account(text: str, labels: Labels) -> bool:
        if text == "all()":
            return "projectcalico.org/serviceaccount" in labels
        return selects(text, without(labels, "pcsa."))

    @staticmethod
    def _is_pod(thing: Thing, namespace: str | None = None) -> bool:
        labels = thing.labels
        return labels.get("projectcalico.org/orchestrator") == "k8s" and namespace in (None, labels.get(NAMESPACE))

    # --- rules ---------------------------------------------------------------------------------------------------

    def _matches(self, rule: Object, q: Question) -> bool:
        if "matches" in rule:
            return bool(rule["matches"](q))
        protocol, unwanted = (_number(rule.get(name)) for name in ("protocol", "notProtocol"))
        version = rule.get("ipVersion") or {"icmp": 4, "icmpv6": 6}.get(str(rule.get("protocol")).lower())
        if version not in (None, q.version) or protocol not in (None, q.protocol) or unwanted == q.protocol:
            return False
        if rule.get("icmp") and not _icmp(rule["icmp"], q):
            return False
        if rule.get("notICMP") and _icmp(rule["notICMP"], q):
            return False
        return all(self._end(rule.get(side) or {}, side, protocol, rule.get("namespace", ""), q) for side in _SIDES)

    def _end(self, entity: Object, side: str, protocol: int | None, namespace: str, q: Question) -> bool:
        address, port = q.end(side), q.port_of(side)
        for name in ("nets", "notNets"):
            nets = [ipaddress.ip_network(text, strict=False) for text in entity.get(name) or []]
            ours = [net for net in nets if net.version == q.version]
            if nets and not ours:
                return False
            if nets and any(address in net for net in ours) is (name == "notNets"):
                return False
        if service := entity.get("services"):
            where = (service.get("namespace") or namespace, service["name"])
            if not self._serves(where, address, q.protocol, port, any_port=side == "source"):
                return False
        wants = self._wants(entity, namespace)
        if wants is not None and not any(address in net for thing in self.things if wants(thing) for net in thing.nets):
            return False
        unwanted = entity.get("notSelector")
        if wants is None and unwanted:
            for thing in self.things:
                if selects(unwanted, thing.labels) and any(address in net for net in thing.nets):
                    return False
        for name, expected in (("ports", True), ("notPorts", False)):
            ports = entity.get(name)
            if ports and self._has_port(ports, wants, address, protocol, q.protocol, port) is not expected:
                return False
        return True

    def _wants(self, entity: Object, namespace: str) -> Callable[[Thing], bool] | None:
        """Which things a rule means; None: whoever."""
        selector, unwanted = entity.get("selector"), entity.get("notSelector")
        namespaces, accounts = entity.get("namespaceSelector"), entity.get("serviceAccounts")
        own = bool(namespace) and not namespaces and bool(selector or unwanted or accounts)
        if not (selector or namespaces or accounts or own):
            return None

        def wanted(thing: Thing) -> bool:
            labels = thing.labels
            if own and labels.get(NAMESPACE) != namespace:
                return False
            if namespaces and not self._namespace(namespaces, labels):
                return False
            names = accounts and accounts.get("names")
            if names and labels.get("projectcalico.org/serviceaccount") not in names:
                return False
            if accounts and accounts.get("selector") and not self._account(accounts["selector"], labels):
                return False
            if selector and not selects(selector, labels):
                return False
            return not (unwanted and selects(unwanted, labels))

        return wanted

    def _has_port(
        self,
        ports: list[int | str],
        wants: Callable[[Thing], bool] | None,
        address: Address,
        protocol: int | None,
        have: int,
        port: int,
    ) -> bool:
        if have not in (6, 17, 132):
            return False
        for one in ports:
            if re.fullmatch(r"\d+(:\d+)?", str(one)):
                first, _, last = str(one).partition(":")
                if int(first) <= port <= int(last or first):
                    return True
                continue
            for thing in self.things:
                named = [(p, n) for name, p, n in thing.ports if name == one and protocol in (None, p)]
                meant = (have, port) in named and (wants is None or wants(thing))
                if meant and any(address in net for net in thing.nets):
                    return True
        return False

    def _serves(self, service: tuple[str, str], address: Address, have: int, port: int, *, any_port: bool) -> bool:
        for o in self._of("EndpointSlice"):
            label = (o["metadata"].get("labels") or {}).get("kubernetes.io/service-name")
            if (o["metadata"]["namespace"], label) != service:
                continue
            there = any(str(address) in endpoint["addresses"] for endpoint in o["endpoints"])
            ports = [(PROTOCOLS[p["protocol"].lower()], p["port"]) for p in o["ports"]]
            if there and (any_port or (have, port) in ports):
                return True
        return False

    # --- Kubernetes ----------------------------------------------------------------------------------------------

    def _kubernetes_rules(self, entries: list[Object], direction: str, namespace: str) -> Iterator[Object]:
        side = "source" if direction == "ingress" else "destination"
        for entry in entries:
            peers = entry.get("from" if direction == "ingress" else "to") or []

            def matches(q: Question, entry: Object = entry, peers: list[Object] = peers) -> bool:
                ends = not peers or any(self._kubernetes_peer(peer, namespace, q.end(side)) for peer in peers)
                wanted = [peer for peer in peers if direction == "egress"]
                return ends and self._kubernetes_ports(entry.get("ports") or [], wanted, namespace, q)

            yield {"action": "Allow", "matches": matches}

    def _kubernetes_things(self, peer: Object, namespace: str) -> list[Thing]:
        found = []
        for thing in self.things:
            if not self._is_pod(thing) or not selects_labels(peer.get("podSelector"), thing.labels):
                continue
            if "namespaceSelector" in peer:
                if selects_labels(peer["namespaceSelector"], without(thing.labels, "pcns.")):
                    found.append(thing)
            elif thing.labels.get(NAMESPACE) == namespace:
                found.append(thing)
        return found

    def _kubernetes_peer(self, peer: Object, namespace: str, address: Address) -> bool:
        if block := peer.get("ipBlock"):
            nets = [ipaddress.ip_network(text, strict=False) for text in block.get("except") or []]
            # Of an exception of the other family nothing is left, and then nothing of the peer.
            if nets and not any(net.version == address.version for net in nets):
                return False
            return address in ipaddress.ip_network(block["cidr"], strict=False) and not any(address in n for n in nets)
        return any(address in net for thing in self._kubernetes_things(peer, namespace) for net in thing.nets)

    def _kubernetes_ports(self, ports: list[Object], peers: list[Object], namespace: str, q: Question) -> bool:
        for entry in ports:
            if PROTOCOLS[(entry.get("protocol") or "TCP").lower()] != q.protocol:
                continue
            port = entry.get("port")
            if port is None:
                return True
            if isinstance(port, int):
                if port <= q.port <= (entry.get("endPort") or port):
                    return True
                continue
            for thing in self.things:
                if (port, q.protocol, q.port) in thing.ports and any(q.end("destination") in net for net in thing.nets):
                    pods = [peer for peer in peers if "ipBlock" not in peer]
                    blocks = [peer for peer in peers if "ipBlock" in peer]
                    if not peers or any(thing in self._kubernetes_things(peer, namespace) for peer in pods):
                        return True
                    if any(self._kubernetes_peer(peer, namespace, q.end("destination")) for peer in blocks):
                        return True
        return not ports

    def _cluster_subject(self, subject: Object, thing: Thing) -> bool:
        if not self._is_pod(thing) or NAMESPACE not in thing.labels:
            return False
        marked = without(thing.labels, "pcns.")
        if "namespaces" in subject:
            return selects_labels(subject["namespaces"], marked)
        pods = subject["pods"]
        return selects_labels(pods["namespaceSelector"], marked) and selects_labels(pods["podSelector"], thing.labels)

    def _cluster_rules(self, entries: list[Object], direction: str) -> Iterator[Object]:
        side, word = ("source", "from") if direction == "ingress" else ("destination", "to")
        for entry in entries:

            def matches(q: Question, entry: Object = entry) -> bool:
                for peer in entry[word]:
                    if "networks" in peer:
                        nets = [ipaddress.ip_network(text) for text in peer["networks"]]
                        ends, things = any(q.end(side) in net for net in nets), None
                    else:
                        things = [thing for thing in self.things if self._cluster_subject(peer, thing)]
                        ends = any(q.end(side) in net for thing in things for net in thing.nets)
                    of = things if direction == "egress" else None
                    if ends and self._cluster_ports(entry.get("protocols") or [], of, q):
                        return True
                return False

            action = {"Accept": "Allow", "Deny": "Deny", "Pass": "Pass"}[entry["action"]]
            yield {"action": action, "matches": matches}

    def _cluster_ports(self, protocols: list[Object], things: list[Thing] | None, q: Question) -> bool:
        for entry in protocols:
            if name := entry.get("destinationNamedPort"):
                for thing in self.things if things is None else things:
                    there = any(q.end("destination") in net for net in thing.nets)
                    if there and (name, q.protocol, q.port) in thing.ports:
                        return True
                continue
            ((word, transport),) = entry.items()
            if PROTOCOLS[word] != q.protocol:
                continue
            port = transport.get("destinationPort")
            if port is None:
                return True
            span = port.get("range") or {"start": port.get("number"), "end": port.get("number")}
            if span["start"] <= q.port <= span["end"]:
                return True
        return not protocols


_SIDES = ("source", "destination")


def _number(protocol: Any) -> int | None:
    if protocol is None or isinstance(protocol, int):
        return protocol
    return PROTOCOLS[protocol.lower()]


def _icmp(wanted: Object, q: Question) -> bool:
    kind, code = q.icmp
    if q.protocol != (1 if q.version == 4 else 58):
        return False
    return wanted["type"] == kind and wanted.get("code") in (None, code)
