"""Members of the sets that rules refer to. Each member is counted, because several objects may give it. Pure.

A selector is two sets: single addresses, and the prefixes of network sets, which is there only while it has any. Named
ports and services are sets of (address, protocol, port). The prefixes of a rule are a set that never changes.
Invariant: of the prefixes of one set none covers another.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Protocol

from felixpy.calc.policy.classes import MemberKey, PolicySet, PolicySetKey, PolicySetType, comment_text, set_name
from felixpy.model.net import FAMILIES, Family, Net, family_of
from felixpy.model.policy import EndpointSlice, ServiceName
from felixpy.store.peers import Peer


class Output(Protocol):
    """Takes entries; what the family of is off goes no further."""

    def member(self, key: MemberKey, *, present: bool) -> None: ...

    def set(self, key: PolicySetKey, value: PolicySet | None) -> None: ...


def without_covered(nets: Iterable[Net]) -> tuple[Net, ...]:
    """Those that no other one covers, in order."""
    kept: list[Net] = []
    for net in sorted(set(nets), key=lambda net: (len(net.packed), net.packed, net.length)):
        if not (kept and kept[-1].covers(net)):
            kept.append(net)
    return tuple(kept)


class Prefixes:
    """Counted prefixes of one family, of which those are members that no other one covers."""

    def __init__(self, name: str, output: Output) -> None:
        self._name = name
        self._output = output
        self._count: dict[Net, int] = {}
        self._sorted: list[Net] = []
        self._lengths: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._count)

    def members(self) -> Iterator[MemberKey]:
        return (MemberKey(self._name, net) for net in self._sorted if not self._is_covered(net))

    def add(self, net: Net) -> None:
        count = self._count.get(net, 0)
        self._count[net] = count + 1
        if count:
            return
        if not self._is_covered(net):
            for other in self._shown_below(net):
                self._tell(other, present=False)
            self._tell(net, present=True)
        insort(self._sorted, net)
        self._lengths[net.length] = self._lengths.get(net.length, 0) + 1

    def discard(self, net: Net) -> None:
        self._count[net] -= 1
        if self._count[net]:
            return
        del self._count[net]
        del self._sorted[bisect_left(self._sorted, net)]
        self._lengths[net.length] -= 1
        if not self._lengths[net.length]:
            del self._lengths[net.length]
        if not self._is_covered(net):
            self._tell(net, present=False)
            for other in self._shown_below(net):
                self._tell(other, present=True)

    def _tell(self, net: Net, *, present: bool) -> None:
        self._output.member(MemberKey(self._name, net), present=present)

    def cover(self, address: bytes) -> bool:
        """Whether an address lies in one of them."""
        net = Net.host(address)
        return any(net.widened(length) in self._count for length in self._lengths)

    def _is_covered(self, net: Net) -> bool:
        return any(length < net.length and net.widened(length) in self._count for length in self._lengths)

    def _shown_below(self, net: Net) -> list[Net]:
        """The widest prefixes that lie in a prefix that is not among them."""
        found: list[Net] = []
        for at in range(bisect_left(self._sorted, net), len(self._sorted)):
            other = self._sorted[at]
            if not net.covers(other):
                break
            if other != net and not (found and found[-1].covers(other)):
                found.append(other)
        return found


class SelectorSet:
    """Addresses and prefixes of the peers that a selector matches."""

    def __init__(self, text: str, output: Output) -> None:
        self.hosts = set_name(PolicySetType.ADDRESSES, text)
        self.nets = set_name(PolicySetType.NETS, text)
        self.text = text
        self._output = output
        self._count: dict[Net, int] = {}
        self._prefixes = {family: Prefixes(self.nets, output) for family in FAMILIES}
        self._shown: set[Family] = set()

    def has_prefixes(self, family: Family) -> bool:
        return bool(self._prefixes[family])

    def show(self) -> None:
        for family in FAMILIES:
            self._output.set(PolicySetKey(family, self.hosts), self._value(PolicySetType.ADDRESSES))

    def hide(self) -> None:
        """Everything goes, also the members."""
        for key in list(self.members()):
            self._output.member(key, present=False)
        for family in FAMILIES:
            self._output.set(PolicySetKey(family, self.hosts), None)
            if self._prefixes[family]:
                self._output.set(PolicySetKey(family, self.nets), None)

    def members(self) -> Iterator[MemberKey]:
        yield from (MemberKey(self.hosts, net) for net in self._count)
        for prefixes in self._prefixes.values():
            yield from prefixes.members()

    def holds(self, name: str, address: bytes, protocol: int = 0, port: int = 0) -> bool:
        """Whether an address is in the one of its sets that has this name."""
        if name == self.hosts:
            return Net.host(address) in self._count
        return self._prefixes[family_of(address)].cover(address)

    def described(self) -> Iterator[tuple[str, str]]:
        """Its sets, and what they stand for."""
        yield self.hosts, self.text
        if any(self._prefixes.values()):
            yield self.nets, f"prefixes of {self.text}"

    def add(self, peer: Peer) -> bool:
        """Whether the set of prefixes appears."""
        appears = False
        for net in peer.nets:
            if net.is_host:
                count = self._count.get(net, 0)
                self._count[net] = count + 1
                if not count:
                    self._output.member(MemberKey(self.hosts, net), present=True)
                continue
            prefixes = self._prefixes[net.family]
            if not prefixes:
                self._output.set(PolicySetKey(net.family, self.nets), self._value(PolicySetType.NETS))
                appears = True
            prefixes.add(net)
        return appears

    def discard(self, peer: Peer) -> bool:
        """Whether the set of prefixes vanishes."""
        vanishes = False
        for net in peer.nets:
            if net.is_host:
                self._count[net] -= 1
                if not self._count[net]:
                    del self._count[net]
                    self._output.member(MemberKey(self.hosts, net), present=False)
                continue
            prefixes = self._prefixes[net.family]
            prefixes.discard(net)
            if not prefixes:
                self._output.set(PolicySetKey(net.family, self.nets), None)
                vanishes = True
        return vanishes

    def _value(self, shape: PolicySetType) -> PolicySet:
        return PolicySet(shape, comment_text(self.text))


class CountedSet:
    """A set of one name whose members are counted."""

    def __init__(self, shape: PolicySetType, name: str, comment: str, output: Output) -> None:
        self.name = name
        self._words = comment
        self._value = PolicySet(shape, comment_text(comment))
        self._output = output
        self._count: dict[MemberKey, int] = {}

    def show(self) -> None:
        for family in FAMILIES:
            self._output.set(PolicySetKey(family, self.name), self._value)

    def hide(self) -> None:
        for key in self._count:
            self._output.member(key, present=False)
        self._count.clear()
        for family in FAMILIES:
            self._output.set(PolicySetKey(family, self.name), None)

    def holds(self, name: str, address: bytes, protocol: int = 0, port: int = 0) -> bool:
        """Whether an address is a member; with its protocol and port in a set of those."""
        return MemberKey(self.name, Net.host(address), protocol, port) in self._count

    def described(self) -> Iterator[tuple[str, str]]:
        """The set, and what it stands for."""
        yield self.name, self._words

    def members(self) -> Iterator[MemberKey]:
        return iter(self._count)

    def add(self, members: Iterable[MemberKey]) -> None:
        for key in members:
            count = self._count.get(key, 0)
            self._count[key] = count + 1
            if not count:
                self._output.member(key, present=True)

    def discard(self, members: Iterable[MemberKey]) -> None:
        for key in members:
            self._count[key] -= 1
            if not self._count[key]:
                del self._count[key]
                self._output.member(key, present=False)


class PortSet(CountedSet):
    """Named ports of the endpoints that a selector matches: of one protocol, or of any if it is 0."""

    def __init__(self, text: str, protocol: int, names: tuple[str, ...], output: Output) -> None:
        name = set_name(PolicySetType.ADDRESS_PORTS, "ports", text, str(protocol), *names)
        of = f" of protocol {protocol}" if protocol else ""
        super().__init__(PolicySetType.ADDRESS_PORTS, name, f"ports {', '.join(names)}{of}: {text}", output)
        self.names = names
        self._protocol = protocol

    def of(self, peer: Peer) -> list[MemberKey]:
        """What an endpoint gives to the set."""
        ports = [port for port in peer.ports if port.name in self.names and self._protocol in (0, port.protocol)]
        if not ports:
            return []
        return list(
            dict.fromkeys(MemberKey(self.name, net, port.protocol, port.port) for net in peer.nets for port in ports)
        )


class ServiceSet(CountedSet):
    """Addresses of the endpoints of a Service, with its ports or without."""

    def __init__(self, service: ServiceName, *, ports: bool, output: Output) -> None:
        shape = PolicySetType.ADDRESS_PORTS if ports else PolicySetType.ADDRESSES
        name = set_name(shape, "service", service.namespace, service.name)
        super().__init__(shape, name, f"service {service.namespace}/{service.name}", output)
        self.service = service
        self._ports = ports

    def of(self, slice_: EndpointSlice) -> list[MemberKey]:
        if not self._ports:
            return [MemberKey(self.name, net) for net in slice_.addresses]
        return [
            MemberKey(self.name, net, port.protocol, port.port) for net in slice_.addresses for port in slice_.ports
        ]


class NetsSet(CountedSet):
    """The prefixes of a rule, none of which covers another."""

    def __init__(self, nets: tuple[Net, ...], output: Output) -> None:
        words = ",".join(map(str, nets))
        super().__init__(PolicySetType.NETS, set_name(PolicySetType.NETS, "nets", words), words, output)
        self._family = nets[0].family
        self._nets = nets

    def holds(self, name: str, address: bytes, protocol: int = 0, port: int = 0) -> bool:
        """Whether one of the prefixes holds an address."""
        return any(net.covers(address) for net in self._nets)

    def show(self) -> None:
        self._output.set(PolicySetKey(self._family, self.name), self._value)
        self.add(MemberKey(self.name, net) for net in self._nets)

    def hide(self) -> None:
        for key in self._count:
            self._output.member(key, present=False)
        self._count.clear()
        self._output.set(PolicySetKey(self._family, self.name), None)


Content = SelectorSet | PortSet | ServiceSet | NetsSet
"""What a set of rules is made of."""
