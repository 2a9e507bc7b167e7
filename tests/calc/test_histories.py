"""Any history of updates leaves what a calculation from scratch finds, in whatever order the updates came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from felixpy.calc.entries import Key, Value
from felixpy.calc.graph import HOST, Absent, Calculation
from felixpy.calc.host import Host
from felixpy.config import ProgramClusterRoutes, Settings
from felixpy.model.resources import Encapsulation, IPPool, Node, Resource, ResourceKey, Update, WorkloadEndpoint
from felixpy.store.store import Store
from tests.calc.samples import HOST_FACTS, NODE, POLICY_KEYS, SETTINGS, affinity, block, endpoint, nets, node, pool

PROPERTY = settings(max_examples=120, deadline=None, derandomize=True)
# A small world, so that resources meet: few addresses, interfaces, ranges and nodes.
NODES = ["n1", "n2", "n3"]
ADDRESSES = ["10.65.0.2", "10.65.0.3", "10.65.0.70", "fd00:65::2", "fd00:65::42"]
CREATED = ["", "2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"]
RANGES = ["10.65.0.0/16", "10.65.0.0/24", "10.65.0.64/26", "10.65.0.70/32", "fd00:65::/64", "fd00:65::40/122", "::/0"]
NODE_ADDRESSES = [
    (),
    ("192.0.2.1/24",),
    ("192.0.2.2/24",),
    ("2001:db8::2/64",),
    ("192.0.2.3/24", "2001:db8::3/64"),
    ("203.0.113.3/24",),
]


@st.composite
def endpoints(draw: st.DrawFn) -> WorkloadEndpoint:
    own = draw(st.lists(st.sampled_from(ADDRESSES), max_size=3, unique=True))
    leads = [(one, it) for one in ADDRESSES if one not in own for it in own if (":" in one) == (":" in it)]
    floating = st.lists(st.sampled_from(leads), max_size=2, unique_by=lambda pair: pair[0]) if leads else st.just([])
    return endpoint(
        draw(st.sampled_from("abc")),
        *own,
        floating=draw(floating),
        interface=draw(st.sampled_from(["cali1", "cali2", "eth0"])),
        node=draw(st.sampled_from(NODES[:2])),
        mac=draw(st.sampled_from(["", "ee:ee:ee:ee:ee:01", "ee:ee:ee:ee:ee:02"])),
        sources=draw(st.lists(st.sampled_from(RANGES), max_size=2)),
        created=draw(st.sampled_from(CREATED)),
    )


@st.composite
def pools(draw: st.DrawFn) -> IPPool:
    return pool(
        draw(st.sampled_from("abc")),
        draw(st.sampled_from(RANGES)),
        nat=draw(st.booleans()),
        encapsulation=draw(st.sampled_from([Encapsulation.NONE, *Encapsulation])),
        uses=draw(st.sampled_from([("Workload",), ("LoadBalancer",)])),
    )


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    return node(
        draw(st.sampled_from(NODES)),
        *draw(st.sampled_from(NODE_ADDRESSES)),
        vxlan=draw(st.sampled_from([[], ["10.65.0.2"], ["10.65.0.70", "fd00:65::42"]])),
        ipip=draw(st.sampled_from(["", "10.65.0.3"])),
        mac=draw(st.sampled_from(["", "66:00:00:00:00:01"])),
    )


@st.composite
def blocks(draw: st.DrawFn) -> Resource:
    cidr = draw(st.sampled_from(RANGES[1:6]))
    if draw(st.booleans()):
        return affinity(cidr, draw(st.sampled_from(NODES)))
    family_addresses = [one for one in ADDRESSES if (":" in one) == (":" in cidr)]
    lent = draw(st.lists(st.tuples(st.sampled_from(family_addresses), st.sampled_from(NODES)), max_size=2))
    return block(cidr, draw(st.sampled_from([None, *NODES])), *lent)


@st.composite
def updates(draw: st.DrawFn) -> Update:
    """An object that is there, or the absence of one of that key."""
    resource: Resource = draw(st.one_of(endpoints(), pools(), nodes(), blocks()))
    gone = draw(st.sampled_from([False, False, True]))
    return Update(resource.key, None if gone else resource)


Batches = st.lists(st.lists(updates(), min_size=1, max_size=4), max_size=12)


ALL_ON = replace(SETTINGS, floating_ips=True, ipv6_over_ipv4=True, ipv4_over_ipv6=True)


def new(settings: Settings = ALL_ON, host: Host = HOST_FACTS) -> Calculation:
    return Calculation(Store(settings.nodename), settings, host)


def take(calculation: Calculation, batch: Iterable[Update]) -> dict[Key, Value | Absent]:
    """One batch as the agent takes it: the store first, then one calculation of all that is dirty."""
    dirty: set[ResourceKey] = set()
    for update in batch:
        dirty |= calculation.store.apply(update) | {update.key}
    changes = calculation.calculate(dirty)
    calculation.policy.settled()  # the kernel has it all: numbers of classes do not tell of the past
    return changes


def follow(mirror: dict[Key, Value], changes: dict[Key, Value | Absent]) -> None:
    for key, value in changes.items():
        if isinstance(value, Absent):
            mirror.pop(key, None)
        else:
            mirror[key] = value


def latest(batches: Iterable[Iterable[Update]]) -> list[Update]:
    last = {update.key: update for batch in batches for update in batch}
    return [update for update in last.values() if update.resource is not None]


def outcome(calculation: Calculation) -> tuple[dict[Key, Value | Absent], dict[ResourceKey, str]]:
    return calculation.entries(), calculation.problems


def from_scratch(remaining: Sequence[Update], settings: Settings = ALL_ON, host: Host = HOST_FACTS) -> Calculation:
    calculation = new(settings, host)
    for update in remaining:
        calculation.store.apply(update)
    calculation.calculate({HOST, *calculation.store.all_keys()})
    return calculation


@given(Batches)
@PROPERTY
def test_incremental_equals_from_scratch(batches: list[list[Update]]) -> None:
    calculation, mirror = new(), dict[Key, Value]()
    follow(mirror, calculation.calculate({HOST}))
    for batch in batches:
        follow(mirror, take(calculation, batch))
        assert mirror == calculation.entries()  # the changes handed out are all the changes
    assert outcome(calculation) == outcome(from_scratch(latest(batches)))
    for key in calculation.entries():
        if isinstance(key, POLICY_KEYS):
            continue  # owned by no object alone
        owner = calculation.owner_of(key)
        assert owner is not None
        assert key in calculation.keys_of(owner)


@st.composite
def worlds_and_changes(draw: st.DrawFn) -> tuple[list[Resource], Resource]:
    """A world of objects that depend on each other, and one that others depend on with another value in one field."""

    def some(kind: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(kind, min_size=2, max_size=3, unique_by=lambda one: one.key))

    shared = some(pools()) + some(nodes())
    one = draw(st.sampled_from(shared))
    others = (pools() if isinstance(one, IPPool) else nodes()).map(lambda other: replace(other, key=one.key))
    other = draw(others.filter(lambda other: other != one))
    differing = [each for each in one.__struct_fields__ if getattr(one, each) != getattr(other, each)]
    name = draw(st.sampled_from(differing))
    return shared + some(blocks()), replace(one, **{name: getattr(other, name)})


@given(worlds_and_changes())
@settings(PROPERTY, max_examples=400)
def test_one_field_changed_is_like_a_start_with_it(drawn: tuple[list[Resource], Resource]) -> None:
    """Whatever depends on the field is calculated again, though the store looks for no more than that."""
    world, changed = drawn
    calculation = new()
    take(calculation, [Update(one.key, one) for one in world])
    calculation.calculate({HOST})
    take(calculation, [Update(changed.key, changed)])
    after = {one.key: Update(one.key, one) for one in (*world, changed)}
    assert outcome(calculation) == outcome(from_scratch(list(after.values())))


@given(st.lists(updates(), max_size=20, unique_by=lambda update: update.key), st.randoms(use_true_random=False))
@PROPERTY
def test_the_order_of_updates_does_not_matter(history: list[Update], random: object) -> None:
    other = list(history)
    random.shuffle(other)  # type: ignore[attr-defined]
    one, two = new(), new()
    for update in history:
        take(one, [update])
    for update in other:
        take(two, [update])
    assert outcome(one) == outcome(two)


@given(Batches)
@PROPERTY
def test_a_world_that_vanishes_leaves_nothing(batches: list[list[Update]]) -> None:
    calculation, mirror = new(), dict[Key, Value]()
    for batch in batches:
        follow(mirror, take(calculation, batch))
    for update in latest(batches):
        follow(mirror, take(calculation, [Update(update.key, None)]))
    assert (mirror, calculation.entries(), calculation.problems) == ({}, {}, {})
    assert (len(calculation.store), calculation._owner, calculation._rivals, calculation._entries) == (0, {}, {}, {})


@given(Batches)
@PROPERTY
def test_what_is_said_again_changes_nothing(batches: list[list[Update]]) -> None:
    calculation = new()
    for batch in batches:
        take(calculation, batch)
    before = outcome(calculation)
    for update in latest(batches):
        assert take(calculation, [Update(update.key, update.resource)]) == {}
    assert outcome(calculation) == before


OTHER_SETTINGS = [
    SETTINGS,
    replace(SETTINGS, ipv4_support=False),
    replace(SETTINGS, ipv6_support=False),
    replace(SETTINGS, workload_source_spoofing_any=True, ipv4_normal_route_priority=7),
    *(replace(SETTINGS, program_cluster_routes=one) for one in ProgramClusterRoutes),
    replace(SETTINGS, vxlan_enabled=False, ipip_enabled=True),
    replace(SETTINGS, floating_ips=True),
    replace(SETTINGS, ipv6_over_ipv4=True),
    replace(SETTINGS, ipv4_over_ipv6=True, vxlan_enabled=False),
    replace(SETTINGS, external_nodes_cidr_list=nets("192.0.2.0/24"), interface_prefix=("eth", "cali1")),
]
OTHER_HOSTS = [HOST_FACTS, replace(HOST_FACTS, ipv6=False), replace(HOST_FACTS, addresses=(), rp_filter=2)]


@given(
    st.lists(
        st.tuples(st.lists(updates(), max_size=4), st.sampled_from(OTHER_SETTINGS), st.sampled_from(OTHER_HOSTS)),
        max_size=6,
    )
)
@PROPERTY
def test_changes_of_settings_and_of_the_host_are_like_a_start_with_them(
    steps: list[tuple[list[Update], Settings, Host]],
) -> None:
    calculation, mirror = new(), dict[Key, Value]()
    follow(mirror, calculation.calculate({HOST}))
    wanted, host = ALL_ON, HOST_FACTS
    for batch, wanted, host in steps:
        follow(mirror, take(calculation, batch))
        follow(mirror, calculation.reconfigure(wanted, host))
        calculation.policy.settled()
    scratch = from_scratch(latest(batch for batch, _, _ in steps), wanted, host)
    assert outcome(calculation) == outcome(scratch)
    assert mirror == calculation.entries()


def test_the_small_world_does_meet() -> None:
    """The properties say nothing if nothing ever collides: one history with every kind of collision."""
    found: set[str] = set()

    @given(Batches)
    @settings(max_examples=480, deadline=None, derandomize=True, database=None)
    def look(batches: list[list[Update]]) -> None:
        calculation = new()
        for batch in batches:
            take(calculation, batch)
            if calculation._rivals:
                found.add("rivals")
            found.update(reason.split(" ")[0] for reason in calculation.problems.values())

    look()
    assert found >= {"rivals", "address", "floating", "interface", "no", "node", "this"}
    assert NODE in NODES
