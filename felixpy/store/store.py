"""The latest resource of every key, and the indexes that say which objects depend on it.

It answers one question: given an update, which objects have to be calculated again? The answer never grows with the
number of endpoints. No I/O, no event loop.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from felixpy.model.net import FAMILIES, Family, Net
from felixpy.model.node import merged_node
from felixpy.model.resources import (
    POLICY_KINDS,
    BGPConfiguration,
    BlockAffinity,
    Encapsulation,
    FelixConfiguration,
    IPAMBlock,
    IPPool,
    Kind,
    Node,
    PolicyResource,
    ResourceKey,
    Update,
    WorkloadEndpoint,
)
from felixpy.store.claims import Claims, Youngest
from felixpy.store.index import Index
from felixpy.store.peers import Identities, Peer
from felixpy.store.prefixes import Prefixes
from felixpy.store.ways import Ways, way_key


class Store:
    """Resources by key. ``node_name`` decides which endpoints are local."""

    def __init__(self, node_name: str) -> None:
        self.node_name = node_name
        self.endpoints: dict[ResourceKey, WorkloadEndpoint] = {}
        """Endpoints of this node."""
        self.remote: dict[ResourceKey, Peer] = {}
        """Endpoints of other nodes."""
        self.identities = Identities()
        self.pools: dict[ResourceKey, IPPool] = {}
        self.nodes: dict[str, Node] = {}
        """What is known of each node: what was applied, and what it says of itself where that says nothing."""
        self.applied_nodes: dict[str, Node] = {}
        self.node_states: dict[str, Node] = {}
        self.blocks: dict[ResourceKey, IPAMBlock | BlockAffinity] = {}
        self.configurations: dict[ResourceKey, FelixConfiguration] = {}
        self.bgp_configurations: dict[ResourceKey, BGPConfiguration] = {}
        self.policy: dict[Kind, dict[ResourceKey, PolicyResource]] = {kind: {} for kind in POLICY_KINDS}
        self.pool_cidrs, self.masqueraded_cidrs = Prefixes(), Prefixes()
        """CIDRs of pools that count as pools, and of those with natOutgoing."""
        self._by_address: Claims[Net] = Claims(self._rank)
        self._by_external: Claims[Net] = Claims(self._rank)
        self._by_interface: Claims[str] = Claims(lambda key: (Youngest(self.endpoints[key].created), key))
        self._pools_at: Index[Net, ResourceKey] = Index()
        self._routing_pools: dict[Net, list[ResourceKey]] = {}
        self._blocks_at: Index[Net, ResourceKey] = Index()
        self._block_cidrs, self._tunnel_addresses = Prefixes(), Prefixes()
        self._by_remote_address: Index[Net, ResourceKey] = Index()
        self._up: set[str] = set()
        self._by_mac: Index[tuple[Family, bytes], str] = Index()
        self._by_node_address: Index[bytes, str] = Index()
        self.watched_addresses: frozenset[bytes] = frozenset()
        """This node is looked at again when another one begins or ends to tell one of these."""
        self._blocks_on: Index[str, ResourceKey] = Index()
        self._by_wireguard_key: Index[tuple[Family, bytes], str] = Index()
        self._encapsulations: Counter[tuple[Family, Encapsulation]] = Counter()
        self._encapsulated: dict[Family, frozenset[Encapsulation]] = dict.fromkeys(FAMILIES, frozenset())
        self.ways = Ways()
        self.encrypts = False
        """Whether nodes are WireGuard's peers, so that a block of a node changes what the node is calculated to."""
        self.encapsulation_decides = False
        """Whether it depends on a pool's encapsulation if its blocks are routed at all (``ProgramClusterRoutes``)."""

    def __len__(self) -> int:
        policy = sum(len(found) for found in self.policy.values())
        own = (
            len(self.endpoints)
            + len(self.remote)
            + len(self.pools)
            + len(self.nodes)
            + len(self.blocks)
            + len(self.configurations)
            + len(self.bgp_configurations)
        )
        return own + policy

    def apply(self, update: Update) -> set[ResourceKey]:
        """Take one update and return the keys of the objects to calculate again."""
        place = PLACES[update.key.kind]
        assert update.resource is None or isinstance(update.resource, place.holds)
        return place.put(self, update.key, update.resource)

    def link(self, interface: str, *, up: bool) -> set[ResourceKey]:
        """Take that an interface is there and up, or not, and return the keys of the objects to calculate again.

        Only where several endpoints claim an address of one behind it does that decide anything.
        """
        if up == (interface in self._up):
            return set()
        (self._up.add if up else self._up.discard)(interface)
        dirty: set[ResourceKey] = set()
        for key in self._by_interface.at(interface):
            endpoint = self.endpoints[key]
            for address in endpoint.addresses:
                dirty.update(self._by_address.ranked_anew(address, key))
            for nat in endpoint.ip_nats:
                dirty.update(self._by_external.ranked_anew(nat.external, key))
        return dirty

    def leads_nowhere(self, update: Update) -> bool:
        """Whether an update is a new block, on a node alone of which nothing is known: nothing becomes of it before
        something of the node comes.
        """
        block = update.resource
        if not isinstance(block, (IPAMBlock, BlockAffinity)) or self.encrypts or block.host in self.nodes:
            return False
        has_borrowed = isinstance(block, IPAMBlock) and block.borrowed
        return block.host != self.node_name and not has_borrowed and update.key not in self.blocks

    def held(self, key: ResourceKey) -> object | None:
        """What is stored of a key: of another node's endpoint what others see of it; None if there is nothing."""
        if key.kind is Kind.NODE:
            return self.nodes.get(key.name)
        if key.kind in self.policy:
            return self.policy[key.kind].get(key)
        places: tuple[Mapping[ResourceKey, object], ...] = (
            self.endpoints, self.remote, self.pools, self.blocks, self.configurations, self.bgp_configurations
        )  # fmt: skip
        return next((place[key] for place in places if key in place), None)

    def all_keys(self) -> set[ResourceKey]:
        """Keys of every object that is calculated."""
        return {key for place in PLACES.values() for key in place.calculated(self)}

    @property
    def labels(self) -> Mapping[str, str]:
        """This node's labels, which select FelixConfigurations."""
        node = self.nodes.get(self.node_name)
        return node.labels if node else {}

    def local(self, endpoint: WorkloadEndpoint) -> bool:
        return endpoint.node == self.node_name

    def address_owner(self, address: Net) -> ResourceKey | None:
        """The local endpoint that has this address: of several one whose interface is there and up, then the youngest,
        then the first by name.
        """
        return self._by_address.owner(address)

    def external_owner(self, address: Net) -> ResourceKey | None:
        """The local endpoint that a floating address leads to: one that has it as its own, else by the same rule."""
        return self._by_address.owner(address) or self._by_external.owner(address)

    def is_crowded(self, place: Net | str) -> bool:
        """Whether so many endpoints claim an address or interface that what is told of one must not name another."""
        if isinstance(place, str):
            return self._by_interface.is_crowded(place)
        return self._by_address.is_crowded(place) or self._by_external.is_crowded(place)

    def claimants(self, addresses: Iterable[Net]) -> set[ResourceKey]:
        """The local endpoints that claim any of some addresses, as their own or as floating ones."""
        claims = self._by_address, self._by_external
        return {key for address in addresses for one in claims for key in one.at(address)}

    def interface_owner(self, interface: str) -> ResourceKey | None:
        """The local endpoint behind this interface, by the same rule."""
        return self._by_interface.owner(interface)

    def covering_pool(self, cidr: Net) -> IPPool | None:
        """The longest pool that contains a block; LoadBalancer-only pools do not count."""
        for wider in self.pool_cidrs.covering(cidr):
            return self.pools[self._routing_pools[wider][0]]
        return None

    def is_in_block_of(self, node: str, address: Net) -> bool:
        """Whether a block says that an address is on a node."""
        for cidr in self._block_cidrs.covering(address):
            for key in self._blocks_at.at(cidr):
                if _is_on(self.blocks[key], node, address):
                    return True
        return False

    def encapsulations(self, family: Family) -> frozenset[Encapsulation]:
        """How pools of a family are encapsulated; LoadBalancer-only ones do not count."""
        return self._encapsulated[family]

    def mac_owner(self, family: Family, mac: bytes) -> str | None:
        """The node that has a VXLAN MAC: this one, else of several the first by name."""
        nodes = self._by_mac.at((family, mac))
        if len(nodes) == 1:
            return next(iter(nodes))
        return self.node_name if self.node_name in nodes else min(nodes, default=None)

    def nodes_at(self, address: bytes) -> Collection[str]:
        """The nodes that say an address is theirs; valid until the next change."""
        return self._by_node_address.at(address)

    def key_owners(self, family: Family, key: bytes) -> Collection[str]:
        """The nodes that publish a WireGuard key."""
        return self._by_wireguard_key.at((family, key))

    def prefixes_of(self, node: str, family: Family) -> Iterator[Net]:
        """What blocks say is on a node: whole blocks, and addresses that it borrowed.

        Of several blocks of one CIDR one counts, the same as for its route.
        """
        for key in self._blocks_on.at(node):
            block = self.blocks[key]
            if block.cidr.family is not family or min(self._blocks_at.at(block.cidr), key=_block_rank) != key:
                continue
            if block.host == node:
                yield block.cidr
            if isinstance(block, IPAMBlock):
                yield from (one.address for one in block.borrowed if one.node == node)

    def node_keys(self) -> set[ResourceKey]:
        """Every node that is known, led to by a block, or this one, and every way."""
        names = {self.node_name, *self.nodes, *self.ways.nodes()}
        if self.encrypts:
            names.update(self._blocks_on.places())  # a peer's blocks need no pool
        return {ResourceKey(Kind.NODE, name) for name in names}.union(self.ways.all())

    def _all_of(self, name: str) -> set[ResourceKey]:
        """A node with all ways to it."""
        return {ResourceKey(Kind.NODE, name), *self.ways.of_node(name)}

    def _rank(self, key: ResourceKey) -> tuple[bool, Youngest, ResourceKey]:
        endpoint = self.endpoints[key]
        return endpoint.interface not in self._up, Youngest(endpoint.created), key

    def _endpoint(self, key: ResourceKey, new: WorkloadEndpoint | None) -> set[ResourceKey]:
        dirty = {key}
        had: tuple[Net, ...] = ()
        has: tuple[Net, ...] = ()
        self.remote.pop(key, None)
        old = self.endpoints.get(key)
        if old is not None:
            had = old.addresses
            for address in had:
                dirty.update(self._by_address.discard(address, key))
            for nat in old.ip_nats:
                dirty.update(self._by_external.discard(nat.external, key))
            dirty.update(self._by_interface.discard(old.interface, key))
            del self.endpoints[key]
        if new is not None and not self.local(new):
            self.remote[key] = self._peer(new)
        elif new is not None:
            self.endpoints[key] = new
            has = new.addresses
            for address in has:
                dirty.update(self._by_address.add(address, key))
            for nat in new.ip_nats:
                dirty.update(self._by_external.add(nat.external, key))
            dirty.update(self._by_interface.add(new.interface, key))
        if had != has:
            for address in {*had, *has}:
                if len(self._by_address.at(address)) <= 1:  # whether anybody has it may be new
                    dirty.update(self._by_remote_address.at(address))
                    if floating := self._by_external.owner(address):
                        dirty.add(floating)
        return dirty

    def peer(self, key: ResourceKey) -> Peer | None:
        """A workload endpoint as others see it, wherever it is."""
        if found := self.remote.get(key):
            return found
        endpoint = self.endpoints.get(key)
        return self._peer(endpoint) if endpoint else None

    def _peer(self, endpoint: WorkloadEndpoint) -> Peer:
        identity = self.identities.of(endpoint.labels, endpoint.profiles)
        return Peer(identity, endpoint.addresses, endpoint.ports)

    def _pool(self, key: ResourceKey, new: IPPool | None) -> set[ResourceKey]:
        old = self.pools.pop(key, None)
        changed = {pool.cidr for pool in (old, new) if pool is not None}
        routed = {cidr: self._routing_at(cidr) for cidr in changed}
        counted = {cidr for cidr in changed if self._count_pool(old, new, cidr)}
        if old is not None:
            self._pools_at.discard(old.cidr, key)
        if new is not None:
            self.pools[key] = new
            self._pools_at.add(new.cidr, key)
        dirty = {key}
        for cidr in counted:
            for narrower in {*self.pool_cidrs.within(cidr), *self.masqueraded_cidrs.within(cidr)} - {cidr}:
                dirty.update(self._pools_at.at(narrower))
        if _routing(old) == _routing(new):
            return dirty
        before = self._encapsulated
        for pool, count in ((old, -1), (new, 1)):
            if pool is not None and not pool.load_balancer_only:
                self._encapsulations[pool.cidr.family, pool.encapsulation] += count
        self._encapsulations = +self._encapsulations
        self._encapsulated = {
            family: frozenset(one for of, one in self._encapsulations if of is family) for family in FAMILIES
        }
        if before != self._encapsulated:
            dirty.add(ResourceKey(Kind.NODE, self.node_name))
        if _tunnels(before) != _tunnels(self._encapsulated):
            dirty.update(node.key for node in self.nodes.values())  # their ends of a tunnel come or go
        for cidr in changed:
            if routed[cidr] != self._routing_at(cidr):
                dirty |= self._routed_anew(cidr)
            elif self.encapsulation_decides and _covering(old) == _covering(new):
                dirty |= self._blocks_in(cidr)
        return dirty.union(self.ways.through(key))

    def _blocks_in(self, cidr: Net) -> set[ResourceKey]:
        return {key for inside in self._block_cidrs.within(cidr) for key in self._blocks_at.at(inside)}

    def _routed_anew(self, cidr: Net) -> set[ResourceKey]:
        """Another pool decides of what is in a CIDR; returns what to calculate again."""
        blocks = self._blocks_in(cidr)
        dirty = set(blocks)
        for key in blocks:
            dirty |= self._lead(key, self.blocks[key])
        for address in self._tunnel_addresses.within(cidr):
            for key in self._by_remote_address.at(address):
                if key.kind is Kind.NODE:
                    dirty |= {key, *self._lead(key, self.nodes[key.name])}
        return dirty

    def _count_pool(self, old: IPPool | None, new: IPPool | None, cidr: Net) -> bool:
        """Count an old and a new pool at a CIDR; whether narrower pools are now covered, or not any more."""
        before = cidr in self.pool_cidrs, cidr in self.masqueraded_cidrs
        if old is not None and old.cidr == cidr:
            if not old.load_balancer_only:
                self.pool_cidrs.discard(cidr)
                self._routing_pools[cidr].remove(old.key)
            if old.nat_outgoing:
                self.masqueraded_cidrs.discard(cidr)
        if new is not None and new.cidr == cidr:
            if not new.load_balancer_only:
                self.pool_cidrs.add(cidr)
                insort(self._routing_pools.setdefault(cidr, []), new.key)
            if new.nat_outgoing:
                self.masqueraded_cidrs.add(cidr)
        if not self._routing_pools.get(cidr, True):
            del self._routing_pools[cidr]
        return before != (cidr in self.pool_cidrs, cidr in self.masqueraded_cidrs)

    def _routing_at(self, cidr: Net) -> ResourceKey | None:
        """The pool of a CIDR that blocks in it are routed by."""
        keys = self._routing_pools.get(cidr)
        return keys[0] if keys else None

    def _applied_node(self, key: ResourceKey, new: Node | None) -> set[ResourceKey]:
        _put(self.applied_nodes, key.name, new)
        return self._node(key)

    def _node_state(self, key: ResourceKey, new: Node | None) -> set[ResourceKey]:
        _put(self.node_states, key.name, new)
        return self._node(ResourceKey(Kind.NODE, key.name))

    def _node(self, key: ResourceKey) -> set[ResourceKey]:
        """Take what is said of a node by now."""
        old = self.nodes.pop(key.name, None)
        new = merged_node(key.name, self.applied_nodes.get(key.name), self.node_states.get(key.name))
        if new is not None:
            self.nodes[key.name] = new
        if _addresses(old) == _addresses(new):
            return {key}
        dirty = {key, *self.ways.of_node(key.name)}
        for node, present in ((old, False), (new, True)):
            if node is not None:
                dirty |= self._place_node(key, node, present=present)
        dirty |= self._lead(key, new)
        # Our own address decides between two interfaces that lead to another node, and whether that is in our subnet.
        return dirty | self.node_keys() if key.name == self.node_name else dirty

    def _place_node(self, key: ResourceKey, node: Node, *, present: bool) -> set[ResourceKey]:
        """Note the places of a node, or forget them: its addresses, MACs and keys. Returns who shares one with it."""
        dirty: set[ResourceKey] = set()
        change_holder = self._by_node_address.add if present else self._by_node_address.discard
        for net in (node.ipv4, node.ipv6):
            if net is not None:
                change_holder(net.packed, key.name)
                if net.packed in self.watched_addresses:
                    dirty.add(ResourceKey(Kind.NODE, self.node_name))
        change_mac = self._by_mac.add if present else self._by_mac.discard
        change_key = self._by_wireguard_key.add if present else self._by_wireguard_key.discard
        for family in FAMILIES:
            for name in change_mac((family, node.vtep_mac(family)), key.name):
                if name != key.name:
                    dirty |= self._all_of(name)
            if public_key := node.wireguard_key(family):
                shared = change_key((family, public_key), key.name)
                dirty.update(ResourceKey(Kind.NODE, name) for name in shared)
        change_address = self._by_remote_address.add if present else self._by_remote_address.discard
        count = self._tunnel_addresses.add if present else self._tunnel_addresses.discard
        for packed in node.tunnel_addresses:
            address = Net.host(packed)
            change_address(address, key)
            count(address)
        return dirty

    def _block(self, key: ResourceKey, new: IPAMBlock | BlockAffinity | None) -> set[ResourceKey]:
        old = self.blocks.pop(key, None)
        if old is not None:
            self._blocks_at.discard(old.cidr, key)
            self._block_cidrs.discard(old.cidr)
        if new is not None:
            self._blocks_at.add(new.cidr, key)
            self._block_cidrs.add(new.cidr)
        former, present = block_nodes(old), block_nodes(new)
        for name in former:
            self._blocks_on.discard(name, key)
        for name in present:
            self._blocks_on.add(name, key)
        for address in self._remote_addresses(old):
            self._by_remote_address.discard(address, key)
        if new is not None:
            self.blocks[key] = new
            for address in self._remote_addresses(new):
                self._by_remote_address.add(address, key)
        dirty = {key, *self._lead(key, new)}
        if self.encrypts:
            dirty |= self._peers_of(old, new)
        for name in former | present:
            if (node := self.nodes.get(name)) is None:
                continue
            for block in (old, new):
                if block and any(block.cidr.covers(address) for address in node.tunnel_addresses):
                    dirty.add(node.key)  # which routes the address by itself where no block does
        return dirty

    def _peers_of(self, *changed: IPAMBlock | BlockAffinity | None) -> set[ResourceKey]:
        """The nodes that a block, or another one of its CIDR, says something of."""
        names: set[str] = set()
        for block in changed:
            if block is None:
                continue
            names |= block_nodes(block)
            for key in self._blocks_at.at(block.cidr):
                names |= block_nodes(self.blocks.get(key))
        return {ResourceKey(Kind.NODE, name) for name in names}

    def _lead(self, key: ResourceKey, thing: IPAMBlock | BlockAffinity | Node | None) -> set[ResourceKey]:
        """Take note of the ways along which a block or a node's own tunnel addresses lead.

        Returns the ways that begin or end with that.
        """
        if thing is None:
            return self.ways.lead(key, ())
        if isinstance(thing, Node):
            pools = [self.covering_pool(Net.host(address)) for address in thing.tunnel_addresses]
            names: set[str] = {key.name}
        else:
            pools, names = [self.covering_pool(thing.cidr)], block_nodes(thing)
        found = {way_key(name, pool.key) for pool in pools if pool for name in names if name != self.node_name}
        return self.ways.lead(key, found)

    def _configuration(self, key: ResourceKey, new: FelixConfiguration | None) -> set[ResourceKey]:
        self.configurations.pop(key, None)
        if new is not None:
            self.configurations[key] = new
        return set()  # they become settings first, and those say what is to be calculated again

    def _bgp_configuration(self, key: ResourceKey, new: BGPConfiguration | None) -> set[ResourceKey]:
        self.bgp_configurations.pop(key, None)
        if new is not None:
            self.bgp_configurations[key] = new
        return {key}

    def _policy(self, key: ResourceKey, new: PolicyResource | None) -> set[ResourceKey]:
        """Which objects depend on it is known to the calculation of policy alone."""
        self.policy[key.kind].pop(key, None)
        if new is not None:
            self.policy[key.kind][key] = new
        return {key}

    def _remote_addresses(self, block: IPAMBlock | BlockAffinity | None) -> Iterator[Net]:
        """Single addresses that a block says are on other nodes: routed there unless they are here after all."""
        if block is None:
            return
        if block.cidr.is_host and block.host != self.node_name:
            yield block.cidr
        if isinstance(block, IPAMBlock):
            yield from (borrowed.address for borrowed in block.borrowed if borrowed.node != self.node_name)


def _put(held: dict[str, Node], name: str, node: Node | None) -> None:
    held.pop(name, None)
    if node is not None:
        held[name] = node


def _covering(pool: IPPool | None) -> object:
    """What the choice of the pool of a block depends on."""
    return None if pool is None or pool.load_balancer_only else pool.cidr


def _routing(pool: IPPool | None) -> object:
    """What the ways to the nodes with blocks in a pool depend on (``calc/overlay.py``)."""
    return None if pool is None or pool.load_balancer_only else (pool.cidr, pool.encapsulation)


def _tunnels(encapsulated: Mapping[Family, frozenset[Encapsulation]]) -> object:
    """What the ends of other nodes' tunnels depend on: which there are, and not to whom they are used."""
    return {family: {one.tunnel for one in found} for family, found in encapsulated.items()}


def _addresses(node: Node | None) -> object:
    """What the ways to a node depend on; if it is our own, those to all."""
    return node and (
        node.ipv4,
        node.ipv6,
        node.tunnel_addresses,
        node.vxlan_mac,
        node.vxlan_mac_ipv6,
        node.wireguard_ipv4,
        node.wireguard_ipv6,
        node.wireguard_public_key,
        node.wireguard_public_key_ipv6,
    )


def _block_rank(key: ResourceKey) -> tuple[bool, ResourceKey]:
    """Of several blocks of one CIDR the first counts."""
    return key.kind is Kind.BLOCK_AFFINITY, key


def _is_on(block: IPAMBlock | BlockAffinity, node: str, address: Net) -> bool:
    if not block.cidr.covers(address):
        return False
    if isinstance(block, IPAMBlock):
        for borrowed in block.borrowed:
            if borrowed.address == address:
                return borrowed.node == node
    return block.host == node


def block_nodes(block: IPAMBlock | BlockAffinity | None) -> set[str]:
    """Every node that a block's routes depend on."""
    if block is None:
        return set()
    nodes = {block.host} if block.host else set()
    if isinstance(block, IPAMBlock):
        nodes |= {borrowed.node for borrowed in block.borrowed}
    return nodes


class Place(NamedTuple):
    """Where a kind is stored.

    ``put`` replaces the resource of a key (None: it is gone) and returns the keys of the objects to calculate again;
    ``calculated`` are the keys that it holds and that are calculated.
    """

    holds: tuple[type, ...]
    put: Callable[[Store, ResourceKey, Any], set[ResourceKey]]
    calculated: Callable[[Store], Iterable[ResourceKey]]


def _blocks_of(kind: Kind) -> Callable[[Store], Iterable[ResourceKey]]:
    return lambda store: (key for key in store.blocks if key.kind is kind)


def _policy_of(kind: Kind) -> Callable[[Store], Iterable[ResourceKey]]:
    return lambda store: store.policy[kind]


PLACES: Final[Mapping[Kind, Place]] = {
    Kind.WORKLOAD_ENDPOINT: Place(
        (WorkloadEndpoint,), Store._endpoint, lambda store: (*store.endpoints, *store.remote)
    ),
    Kind.IP_POOL: Place((IPPool,), Store._pool, lambda store: store.pools),
    Kind.NODE: Place((Node,), Store._applied_node, Store.node_keys),
    Kind.NODE_STATE: Place((Node,), Store._node_state, lambda store: ()),
    Kind.IPAM_BLOCK: Place((IPAMBlock,), Store._block, _blocks_of(Kind.IPAM_BLOCK)),
    Kind.BLOCK_AFFINITY: Place((BlockAffinity,), Store._block, _blocks_of(Kind.BLOCK_AFFINITY)),
    Kind.FELIX_CONFIGURATION: Place((FelixConfiguration,), Store._configuration, lambda store: ()),
    Kind.BGP_CONFIGURATION: Place(
        (BGPConfiguration,), Store._bgp_configuration, lambda store: store.bgp_configurations
    ),
    **{kind: Place((holds,), Store._policy, _policy_of(kind)) for kind, holds in POLICY_KINDS.items()},
}
"""Every kind of resource, and where it is stored. To add a kind: a ``put`` above, and its line here."""
