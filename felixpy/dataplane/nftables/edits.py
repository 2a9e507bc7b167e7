"""A class that takes another content: its chain gets the new name, and the rules that differ, where it stands. Pure.

Chains of classes are long where there are many policies, and a policy that comes or goes changes one rule of each.
Elements of the map name a chain by its address in the kernel, so none of them has to be written anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from felixpy.calc.entries import ElementKey
from felixpy.calc.rule import ChainKey, ClassElement, RuleKey, Table
from felixpy.dataplane.nftables.render import chain_name
from felixpy.dataplane.packet_filter import FilterChange, RenderedChain
from felixpy.netlink.expressions import NFT_GOTO, NFT_JUMP, verdict
from felixpy.netlink.nftables import NftRule
from felixpy.stretch import changed


class Edit(NamedTuple):
    """Rules from ``start`` to before ``end`` of the old chain go, and others come in their place."""

    start: int
    end: int
    rules: tuple[NftRule, ...]


class Renamed(NamedTuple):
    """A chain that stays and gets another name, and how its rules change."""

    old: ChainKey
    new: ChainKey
    length: int
    """How many rules the old chain has."""
    edits: tuple[Edit, ...]


def renamed_chains(change: FilterChange) -> dict[ClassElement, tuple[Renamed, ...]]:
    """By the elements that lead to them, the chains of classes that had better be edited than made anew.

    A packet that is on its way looks for rules as they were when it came, and for members as they are. So nothing is
    edited while an interface comes or changes its class: it would be asked what its new class asked before.
    """
    elements = [key for key in change.chains if isinstance(key, ClassElement) and key in change.before]
    if not elements or any(isinstance(key, ElementKey) for members in (change.add, change.remove) for key in members):
        return {}
    parts = _parts(change.chains)
    found = {}
    for key in elements:
        rules = change.chains[key]
        if rules is not None and (pairs := _renamed(change, parts, change.before[key][0], rules[0])):
            found[key] = pairs
    news = {pair.new for pairs in found.values() for pair in pairs}
    asked = _named(change, news) if found else set()
    return {key: pairs for key, pairs in found.items() if not asked & {chain_name(pair.new) for pair in pairs}}


def _parts(chains: Mapping[RuleKey, RenderedChain | None]) -> dict[str, list[ChainKey]]:
    """Chains by the chain of the class that they belong to."""
    found: dict[str, list[ChainKey]] = {}
    for key in chains:
        if isinstance(key, ChainKey) and key.table is Table.FILTER:
            found.setdefault(chain_name(key).partition(".")[0], []).append(key)
    return found


def _renamed(change: FilterChange, parts: Mapping[str, list[ChainKey]], old: str, new: str) -> tuple[Renamed, ...]:
    """The chains of one class; none if they had better be made anew."""
    olds, news = parts.get(old, []), parts.get(new, [])
    if old == new or len(olds) != len(news) or not olds:
        return ()
    to = {key: ChainKey(key.table, key.name.replace(_bare(old), _bare(new), 1)) for key in olds}
    if set(to.values()) != set(news):
        return ()
    names = {chain_name(key): chain_name(value) for key, value in to.items()}
    found = []
    for before, after in to.items():
        rules, had = change.chains[after], change.before.get(before)
        if change.chains[before] is not None or rules is None or had is None or after in change.before:
            return ()
        edits = tuple(edits_of(_with_names(had, names), rules))
        found.append(Renamed(before, after, len(had), edits))
        if any(map(_counts, had[:-1])):  # ``edits_of`` knows of the last one
            return ()
        if sum(max(edit.end - edit.start, len(edit.rules)) for edit in edits) * 2 > len(rules) + 2:
            return ()
    return tuple(found)


def _bare(name: str) -> str:
    return name.removeprefix(chain_name(ChainKey(Table.FILTER, "")))


def _with_names(rules: RenderedChain, names: Mapping[str, str]) -> Sequence[NftRule]:
    """Rules as they read once chains have other names."""
    if len(names) == 1:
        return rules  # nothing of a class leads to its first chain
    others = {(verdict(NFT_JUMP, old),): (verdict(NFT_JUMP, new),) for old, new in names.items()}
    return [rule._replace(expressions=others.get(rule.expressions, rule.expressions)) for rule in rules]


def _named(change: FilterChange, news: set[ChainKey]) -> set[str]:
    """Which of the new names rules of other chains lead to: those are told only when the transaction is over."""
    by_expression = {verdict(way, chain_name(key)): chain_name(key) for key in news for way in (NFT_GOTO, NFT_JUMP)}
    return {
        by_expression[one]
        for key, rules in change.chains.items()
        if isinstance(key, ChainKey) and key not in news
        for rule in rules or ()
        for one in rule.expressions[-1:]
        if one in by_expression
    }


def edits_of(old: Sequence[NftRule], new: Sequence[NftRule]) -> Iterator[Edit]:
    """What turns rules into others: the first one's comment by itself, one stretch, and what counts, at the end.

    Who reads counters knows them by the chain's name, so that in a chain of another name they begin anew.
    """
    counts = bool(old and new and _counts(old[-1]))
    end, last = (len(old) - 1, len(new) - 1) if counts else (len(old), len(new))
    first = int(bool(end and last and old[0] != new[0] and old[0].expressions == new[0].expressions))
    if first:
        yield Edit(0, 1, (new[0],))
    start, old_end, new_end = changed(old[first:end], new[first:last])
    if start < max(old_end, new_end):
        yield Edit(first + start, first + old_end, tuple(new[first + start : first + new_end]))
    if counts:
        yield Edit(len(old) - 1, len(old), (new[-1],))


def _counts(rule: NftRule) -> bool:
    return len(rule.expressions) > 1 and any(one.name == "counter" for one in rule.expressions)
