"""Work grows with the number of objects and the length of lists, never faster: calls are counted at N and at 4 N.

One case per kind of object as it is and where all meet in one place, and one per list. A call is a function of Python
or of C, so that what a loop does counts, and time does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import msgspec
import pytest
from msgspec.structs import replace

from felixpy.calc.graph import HOST, Calculation
from felixpy.calc.host import Host
from felixpy.config import Settings
from felixpy.config.resolve import resolve
from felixpy.config.sources import SettingsSource
from felixpy.model.documents import load_text
from felixpy.model.keys import NAMESPACED
from felixpy.model.net import Net
from felixpy.model.parse import parse_resource
from felixpy.model.resources import (
    Absent,
    BlockAffinity,
    Borrowed,
    Encapsulation,
    IPAMBlock,
    IPNat,
    IPPool,
    Kind,
    Node,
    Resource,
    ResourceKey,
    Update,
    WorkloadEndpoint,
)
from felixpy.store.store import Store

N = 60
TOLERATED = 6.0
"""Four times the objects: four times the calls and a logarithm; quadratic work makes sixteen times as many."""


def calls(work: Callable[[], object]) -> int:
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def key(kind: Kind, number: int) -> ResourceKey:
    return ResourceKey(kind, f"x{number:06}", "default" if kind in NAMESPACED else "")


def endpoint(number: int, *, at: int | None = None, interface: int | None = None, node: str = "n1") -> WorkloadEndpoint:
    nets = (Net.parse(address(number if at is None else at)),)
    name = f"cali{number if interface is None else interface}"
    created = f"2026-01-01T00:{number // 60 % 60:02}:{number % 60:02}Z"
    return WorkloadEndpoint(key(Kind.WORKLOAD_ENDPOINT, number), node, name, nets, created=created)


def floating(number: int, *, at: int | None = None) -> WorkloadEndpoint:
    made = endpoint(number)
    external = Net.parse(f"198.{18 + (number >> 16)}.{number >> 8 & 255}.{number & 255}" if at is None else address(at))
    return replace(made, ip_nats=(IPNat(external, made.addresses[0]),))


def pool(number: int, cidr: str, **changes: object) -> IPPool:
    made = IPPool(key(Kind.IP_POOL, number), Net.parse(cidr), 26, nat_outgoing=True)
    return replace(made, **changes)  # type: ignore[arg-type]


def block(number: int, cidr: str, host: str = "n2", borrowed: tuple[Borrowed, ...] = ()) -> IPAMBlock:
    return IPAMBlock(key(Kind.IPAM_BLOCK, number), Net.parse(cidr), host, borrowed)


def small(number: int) -> str:
    return f"10.{number >> 10}.{number >> 2 & 255}.{(number & 3) << 6}/26"


WIDE = pool(999_999, "10.0.0.0/8")
N2 = Node(ResourceKey(Kind.NODE, "n2"), Net.parse_interface("192.0.2.2/24"))


def other_node(number: int) -> Node:
    return Node(ResourceKey(Kind.NODE, f"m{number}"), Net.parse_interface(f"192.0.{number >> 8}.{number & 255}/16"))


def block_there(number: int) -> IPAMBlock:
    return block(number, small(number), f"m{number}")


OBJECTS: dict[str, Callable[[int], Iterable[Resource]]] = {
    "endpoints": lambda n: map(endpoint, range(n)),
    "endpoints of another node": lambda n: (endpoint(i, node="n2") for i in range(n)),
    "endpoints with one address, the younger later": lambda n: (endpoint(i, at=1) for i in range(n)),
    "endpoints with one address, the older later": lambda n: (endpoint(i, at=1) for i in reversed(range(n))),
    "endpoints with one interface": lambda n: (endpoint(i, interface=1) for i in range(n)),
    "endpoints with one address and interface": lambda n: (endpoint(i, at=1, interface=1) for i in range(n)),
    "endpoints with floating addresses": lambda n: map(floating, range(n)),
    "endpoints with one floating address": lambda n: (floating(i, at=10 << 24) for i in range(n)),
    "endpoints with the floating address of others": lambda n: (
        *(floating(i, at=1 << 24) for i in range(n)), *(endpoint((1 << 16) + i, at=1 << 24) for i in range(n))
    ),
    "pools": lambda n: (pool(i, small(i)) for i in range(n)),
    "pools in a wide one": lambda n: (WIDE, *(pool(i, small(i)) for i in range(n))),
    "pools of one CIDR": lambda n: (pool(i, "10.0.0.0/16") for i in range(n)),
    "pools of one CIDR with a block": lambda n: (
        N2, block(0, "10.0.0.0/26"), *(pool(i, "10.0.0.0/16") for i in range(n))
    ),
    "pools without tunnels and blocks": lambda n: (
        *map(other_node, range(n)), *(pool(i, small(i)) for i in range(n)), *map(block_there, range(n))
    ),
    "tunnel pools and blocks": lambda n: (
        *map(other_node, range(n)), *(pool(i, small(i), encapsulation=Encapsulation.VXLAN) for i in range(n)),
        *map(block_there, range(n)),
    ),
    "nodes": lambda n: (Node(key(Kind.NODE, i), Net.parse(address(i))) for i in range(n)),
    "nodes with one address": lambda n: (Node(key(Kind.NODE, i), Net.parse(address(1))) for i in range(n)),
    "blocks of one node": lambda n: (WIDE, N2, *(block(i, small(i)) for i in range(n))),
    "blocks of our own": lambda n: (WIDE, *(block(i, small(i), "n1") for i in range(n))),
    "blocks of one CIDR": lambda n: (WIDE, N2, *(block(i, "10.0.0.0/26") for i in range(n))),
    "affinities of one CIDR": lambda n: (
        WIDE, N2, *(BlockAffinity(key(Kind.BLOCK_AFFINITY, i), Net.parse("10.0.0.0/26"), "n2") for i in range(n))
    ),
    "blocks and endpoints of one address": lambda n: (
        WIDE, N2, *(block(i, "10.0.0.1/32") for i in range(n)), *(endpoint(i, at=(10 << 24) + 1) for i in range(n))
    ),
}  # fmt: skip


def parsed(kind: str, number: int, spec: dict[str, object], namespace: str = "") -> Resource:
    """As it comes off the wire."""
    metadata = {"name": f"x{number:06}", **({"namespace": namespace} if namespace else {})}
    api = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}
    found = parse_resource(api)
    assert found is not None and not isinstance(found, Absent)
    return found


ALLOW = {"action": "Allow", "source": {"selector": "a == 'b'"}}
HERE = replace(endpoint(1), labels={"a": "b"}, profiles=("x000001",))


def policy(number: int, **changes: object) -> Resource:
    return parsed("GlobalNetworkPolicy", number, {"selector": "all()", "ingress": [ALLOW], **changes})


def host(number: int, **changes: object) -> Resource:
    return parsed("HostEndpoint", number, {"node": "n1", "interfaceName": f"eth{number}", **changes})


POLICY_OBJECTS: dict[str, Callable[[int], Iterable[Resource]]] = {
    "policies of one endpoint": lambda n: (HERE, *map(policy, range(n))),
    "policies with a selector each": lambda n: (
        HERE, *(policy(i, ingress=[{"action": "Allow", "source": {"selector": f"a == 'b{i}'"}}]) for i in range(n))
    ),
    "policies that select nobody": lambda n: (policy(i, selector=f"a == 'c{i}'") for i in range(n)),
    "endpoints of one policy": lambda n: (policy(1), *(replace(endpoint(i), labels={"a": "b"}) for i in range(n))),
    "policies of a namespace": lambda n: (
        HERE, *(parsed("NetworkPolicy", i, {"selector": "all()", "ingress": [ALLOW]}, "default") for i in range(n))
    ),
    "tiers": lambda n: (HERE, *(parsed("Tier", i, {"order": i}) for i in range(n))),
    "profiles": lambda n: (HERE, *(parsed("Profile", i, {"ingress": [ALLOW]}) for i in range(n))),
    "network sets of one selector": lambda n: (
        HERE, policy(1),
        *(replace(parsed("GlobalNetworkSet", i, {"nets": [address(i)]}), labels={"a": "b"}) for i in range(n)),
    ),
    "host endpoints": lambda n: map(host, range(n)),
    "host endpoints of one interface": lambda n: (host(i, interfaceName="eth0") for i in range(n)),
    "host endpoints with a policy": lambda n: (policy(1), *map(host, range(n))),
    "settings": lambda n: (parsed("FelixConfiguration", i, {"logPrefix": f"x{i}"}) for i in range(n)),
}  # fmt: skip
OBJECTS |= POLICY_OBJECTS
ORDERED = {name for name in OBJECTS if name.startswith(("policies of one", "policies with", "host endpoints"))}
"""Each of the policies of one endpoint has its place among the others, and so has each host endpoint of a node: all of
them are looked at when one changes, so they are counted as a stream brings them, many at once."""


def history(store: Store, calculation: Calculation, resources: list[Resource]) -> None:
    """Come, and then go, one after another."""
    for resource in resources:
        calculation.calculate(store.apply(Update(resource.key, resource)))
    for resource in resources:
        calculation.calculate(store.apply(Update(resource.key, None)))


def at_once(store: Store, calculation: Calculation, resources: list[Resource]) -> None:
    """Come, and then go, all together."""
    calculation.calculate(set().union(*(store.apply(Update(each.key, each)) for each in resources)))
    calculation.calculate(set().union(*(store.apply(Update(each.key, None)) for each in resources)))


def counted(name: str, number: int) -> int:
    store = Store("n1")
    calculation = Calculation(store, Settings(floating_ips=True), Host())
    resources = list(OBJECTS[name](number))
    found = calls(lambda: (at_once if name in ORDERED else history)(store, calculation, resources))
    assert not calculation.problems and not calculation.entries()
    return found


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_cost_the_same_however_many_there_are(name: str) -> None:
    few, many = counted(name, N), counted(name, 4 * N)
    assert many < TOLERATED * few, f"{few} calls for {N}, {many} for {4 * N}"


def test_links_that_come_up_cost_the_same_however_many_endpoints_share_an_address() -> None:
    def up(number: int) -> int:
        store = Store("n1")
        calculation = Calculation(store, Settings(), Host())
        for one in range(number):
            calculation.calculate(store.apply(Update(endpoint(one).key, endpoint(one, at=1))))

        def work() -> None:
            for state in (True, False):
                for one in range(number):
                    calculation.calculate(store.link(f"cali{one}", up=state))

        return calls(work)

    few, many = up(N), up(4 * N)
    assert many < TOLERATED * few, f"{few} calls for {N}, {many} for {4 * N}"


def external_nodes(number: int) -> Callable[[], object]:
    listed = tuple(Net.parse(address(one)) for one in range(number))
    store = Store("n1")
    for one in range(number):
        node = Node(key(Kind.NODE, one), Net.parse(address(one)))
        store.apply(Update(node.key, node))
    settings = Settings(external_nodes_cidr_list=listed)
    return lambda: Calculation(store, settings, Host()).calculate({HOST, *store.all_keys()})


def of_one(resource: Resource, *others: Resource) -> Callable[[], object]:
    store = Store("n1")
    settings = Settings(workload_source_spoofing_any=True)

    def work() -> None:
        history(store, Calculation(store, settings, Host()), [*others, resource])

    return work


def many_nets(number: int) -> tuple[Net, ...]:
    return tuple(Net.parse(address(one)) for one in range(number))


def spoofing(number: int) -> Callable[[], object]:
    return of_one(replace(endpoint(1), allowed_source_prefixes=many_nets(number)))


def addresses(number: int) -> Callable[[], object]:
    return of_one(replace(endpoint(1), addresses=many_nets(number)))


def borrowed(number: int) -> Callable[[], object]:
    taken = tuple(Borrowed(net, f"n{position}") for position, net in enumerate(many_nets(number)))
    return of_one(block(1, "10.0.0.0/16", "n2", taken), WIDE, N2)


def setting(number: int) -> Callable[[], object]:
    text = ",".join(address(one) for one in range(number))
    return lambda: resolve([SettingsSource("test", {"ExternalNodesCIDRList": text})])


def of_policy(spec: Callable[[int], dict[str, object]]) -> Callable[[int], Callable[[], object]]:
    """One policy with a long list, and an endpoint that it selects."""
    return lambda number: of_one(policy(1, **spec(number)), HERE)


def labelled(number: int) -> Callable[[], object]:
    labels = {f"l{one}": "x" for one in range(number)} | {"a": "b"}
    return of_one(replace(endpoint(1), labels=labels), policy(1))


def nets_of_set(number: int) -> Callable[[], object]:
    nets = [address(one) for one in range(number)]
    return of_one(replace(parsed("GlobalNetworkSet", 1, {"nets": nets}), labels={"a": "b"}), HERE, policy(1))


def services(number: int) -> Callable[[], object]:
    ranges = [{"cidr": f"{address(one)}/32"} for one in range(number)]
    configuration = parsed("BGPConfiguration", 1, {"serviceClusterIPs": ranges})
    return of_one(replace(configuration, key=ResourceKey(Kind.BGP_CONFIGURATION, "default")))


def rule(**changes: object) -> dict[str, object]:
    return {"action": "Allow", "protocol": "TCP", **changes}


LISTS: dict[str, Callable[[int], Callable[[], object]]] = {
    "rules of a policy": of_policy(lambda n: {"ingress": [rule(source={"nets": [address(i)]}) for i in range(n)]}),
    "rules that name another selector each": of_policy(
        lambda n: {"ingress": [rule(source={"selector": f"a == 'b{i}'"}) for i in range(n)]}
    ),
    "nets of a rule": of_policy(lambda n: {"ingress": [rule(source={"nets": [address(i) for i in range(n)]})]}),
    "nets that a rule excludes": of_policy(
        lambda n: {"ingress": [rule(source={"notNets": [address(i) for i in range(n)]})]}
    ),
    "ports of a rule": of_policy(lambda n: {"ingress": [rule(destination={"ports": [2 * i + 1 for i in range(n)]})]}),
    "named ports of a rule": of_policy(
        lambda n: {"ingress": [rule(destination={"ports": [f"p{i}" for i in range(n)]})]}
    ),
    "terms of a selector": of_policy(lambda n: {"selector": "||".join(f"a == 'b{i}'" for i in range(n)) + "||all()"}),
    "values of a term": of_policy(lambda n: {"selector": "a in {" + ",".join(f"'b{i}'" for i in range(n)) + ",'b'}"}),
    "labels of an endpoint": labelled,
    "nets of a network set": nets_of_set,
    "ranges of Services": services,
    "external nodes beside as many nodes": external_nodes,
    "allowed source prefixes": spoofing,
    "addresses of an endpoint": addresses,
    "borrowed addresses of a block": borrowed,
    "a list of a setting": setting,
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_cost_the_same_however_long_they_are(name: str) -> None:
    few, many = calls(LISTS[name](N)), calls(LISTS[name](4 * N))
    assert many < TOLERATED * few, f"{few} calls for {N}, {many} for {4 * N}"


def written(kind: str, spec: dict[str, object], version: str = "projectcalico.org/v3") -> dict[str, object]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, "spec": spec}


def parsed_lists(n: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Every kind of object with every list of it ``n`` long, as it comes off the wire."""
    nets = [address(one) for one in range(n)]
    rule = {
        "action": "Allow",
        "protocol": "TCP",
        "source": {"nets": nets},
        "destination": {"ports": [*range(1, n + 1)]},
    }
    ports = [{"name": f"p{one}", "protocol": "TCP", "port": one + 1} for one in range(n)]
    yield "endpoint", written("WorkloadEndpoint", {
        "node": "n", "interfaceName": "cali1", "ipNetworks": nets, "allowSpoofedSourcePrefixes": nets,
        "profiles": [f"p{one}" for one in range(n)], "ports": ports,
    })  # fmt: skip
    yield "node", written("Node", {"addresses": [{"address": one, "type": "InternalIP"} for one in nets]})
    # A block has as many addresses as it is large; each is of another owner.
    size = 32 - (n - 1).bit_length()
    attributes = [{"secondary": {"node": f"n{one}"}} for one in range(n)]
    yield "block", written("IPAMBlock", {
        "cidr": f"10.0.0.0/{size}", "affinity": "host:n", "attributes": attributes,
        "allocations": [*range(n), *[None] * ((1 << (32 - size)) - n)],
    })  # fmt: skip
    yield "policy", written("GlobalNetworkPolicy", {"selector": "all()", "ingress": [rule], "egress": [rule]})
    yield "rules", written("GlobalNetworkPolicy", {"selector": "all()", "ingress": [{"action": "Allow"}] * n})
    yield "selector", written("GlobalNetworkPolicy", {"selector": "||".join(f"a == 'b{one}'" for one in range(n))})
    yield "network set", written("GlobalNetworkSet", {"nets": nets})
    yield "host endpoint", written("HostEndpoint", {
        "node": "n", "interfaceName": "eth0", "expectedIPs": nets, "profiles": [f"p{one}" for one in range(n)],
    })  # fmt: skip
    yield "profile", written("Profile", {"labelsToApply": {f"l{one}": "x" for one in range(n)}})
    yield "ranges of Services", written("BGPConfiguration", {"serviceClusterIPs": [{"cidr": one} for one in nets]})
    yield "settings", written("FelixConfiguration", {"externalNodesList": nets})


@pytest.mark.parametrize("name", [name for name, _ in parsed_lists(1)])
def test_parsing_costs_the_same_however_long_the_lists_of_an_object_are(name: str) -> None:
    def parse(number: int) -> int:
        obj = dict(parsed_lists(number))[name]
        return calls(lambda: parse_resource(obj))

    few, many = parse(64), parse(256)
    assert many < TOLERATED * few, f"{few} calls for 64, {many} for 256"


def test_a_file_costs_the_same_however_many_documents_it_has() -> None:
    def read(number: int) -> int:
        documents = (msgspec.json.encode(written("IPPool", {"cidr": small(one)})) for one in range(number))
        text = b"\n---\n".join(documents)
        return calls(lambda: list(load_text(text, "x.yaml")))

    few, many = read(N), read(4 * N)
    assert many < TOLERATED * few, f"{few} calls for {N}, {many} for {4 * N}"
