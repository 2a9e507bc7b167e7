"""Maps of addresses as chains: iptables has no maps, so each is a chain of one rule per address. Pure.

    fpy-floating        -d 203.0.113.9/32 -j DNAT --to-destination 10.48.0.1
    fpy-floating-loops  -s 10.48.0.1/32 -d 10.48.0.1/32 -j SNAT --to-source 203.0.113.9

A change of a member writes its chain anew, which costs as much as the chain is long; no other update does. Invariant:
what stands in such a chain is a member, or the chain reads as another one than is wanted and is written anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from felixpy.calc.entries import ADDRESS_MAPS, ElementKey, SetName
from felixpy.calc.rule import RuleKey
from felixpy.calc.rules import MAP_CHAINS
from felixpy.dataplane.packet_filter import FilterChange, RenderedChain
from felixpy.model.net import Family, Net, format_address, parse_address

CHAIN_OF: Final = {name: key for key, name in MAP_CHAINS.items()}
_RULES: Final = {
    SetName.FLOATING: "-d {net} -j DNAT --to-destination {address}",
    SetName.FLOATING_LOOPS: "-s {net} -d {net} -j SNAT --to-source {address}",
}
_MEMBER = re.compile(r"-[sd] (\S+)(?: -d \S+)? -j [DS]NAT --to-(?:destination|source) (\S+)")


Members = dict[SetName, dict[Net, int]]
"""Addresses by their map and the address that they stand for."""


class AddressMaps:
    """What the chains hold, as they were last read or written. One family."""

    def __init__(self, family: Family) -> None:
        self._bytes = family.bits // 8
        self._members: Members = {name: {} for name in ADDRESS_MAPS}
        self._writes = 0
        """Goes up when a write begins, and when it has ended: what was read meanwhile may be older."""

    @property
    def moment(self) -> int:
        """To be asked before chains are read."""
        return self._writes

    def take(self, chains: dict[RuleKey, RenderedChain], moment: int) -> tuple[dict[ElementKey, int], bool]:
        """Take the members out of chains as they were read, which leaves those empty.

        Returns:
            The members, and whether they are other ones than were known.
        """
        seen: Members = {name: {} for name in ADDRESS_MAPS}
        for key, name in MAP_CHAINS.items():
            rules = chains.get(key, ())
            found = dict(filter(None, map(self._member, rules)))
            if rules and rules == self._rules(name, found):
                seen[name], chains[key] = found, ()
        differs = seen != self._members
        if moment == self._writes and not moment & 1:
            self._members = seen
        return {ElementKey(name, net): it for name, some in seen.items() for net, it in some.items()}, differs

    def chains(self, change: FilterChange) -> dict[RuleKey, RenderedChain | None]:
        """The chains of a change with the members that they have after it, and those of which only members change."""
        after = self._after(change)
        chains = dict(change.chains)
        for name, key in CHAIN_OF.items():
            if chains.get(key, ()) is not None and (key in chains or after[name] != self._members[name]):
                chains[key] = self._rules(name, after[name])
        return chains

    @contextmanager
    def writing(self, change: FilterChange) -> Iterator[set[RuleKey]]:
        """A block that writes ``chains(change)``; it puts those chains into the set that the kernel refused."""
        after, refused = self._after(change), set[RuleKey]()
        self._writes += 1
        try:
            yield refused
            self._members |= {name: some for name, some in after.items() if CHAIN_OF[name] not in refused}
        finally:
            self._writes += 1

    def _after(self, change: FilterChange) -> Members:
        after = {name: dict(some) for name, some in self._members.items()}
        for key in filter(is_map_member, change.add):
            after[SetName(key.set)][key.net] = change.data[key]
        for key in filter(is_map_member, change.remove):
            after[SetName(key.set)].pop(key.net, None)
        return {name: {} if change.chains.get(CHAIN_OF[name], ()) is None else some for name, some in after.items()}

    def _rules(self, name: SetName, members: Mapping[Net, int]) -> RenderedChain:
        form, size = _RULES[name], self._bytes
        return tuple(
            form.format(net=net, address=format_address(members[net].to_bytes(size))) for net in sorted(members)
        )

    def _member(self, rule: str) -> tuple[Net, int] | None:
        found = _MEMBER.fullmatch(rule)
        try:
            return (Net.parse(found[1]), int.from_bytes(parse_address(found[2]))) if found else None
        except ValueError:
            return None


def is_map_member(key: object) -> bool:
    """Whether a key is that of a member of a map."""
    return isinstance(key, ElementKey) and key.set in _RULES
