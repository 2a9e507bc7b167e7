"""What the kernel was last seen to hold of our table, in one family. It is told what was read, and asks nobody."""

from __future__ import annotations

from collections.abc import Container

from msgspec import Struct, field

from felixpy.calc.entries import ADDRESS_MAPS, STANDING_SETS, ElementKey, SetName
from felixpy.calc.policy.carrier import CLASS_SETS, MAPS
from felixpy.calc.rule import RuleKey
from felixpy.dataplane.nftables import elements, render
from felixpy.dataplane.packet_filter import Member, Part, SetKey
from felixpy.model.net import Family
from felixpy.netlink import nftables as nft
from felixpy.netlink.expressions import NF_ACCEPT

TABLE = "felixpy"
CREATION_ORDER = (*STANDING_SETS[:2], *CLASS_SETS, *STANDING_SETS[2:], elements.EXACT_SOURCES, *ADDRESS_MAPS)
"""The kernel finds a set by its name in the order in which they were made: first those that each endpoint writes."""

EVERY_SET = frozenset(CREATION_ORDER)
EVERY_MAP = frozenset(MAPS.values())


class Seen(Struct):
    """What the kernel was last seen to hold. ``replace``: it is not our layout. ``tainted``: sets with odd ranges.
    ``dormant``: the table stands, but the kernel looks at none of its rules.

    ``part``: whether sets and members were looked at, too, or taken for what they were.
    """

    table: bool = False
    sets: set[SetName] = field(default_factory=set)
    maps: set[str] = field(default_factory=set)
    policy_sets: set[SetKey] = field(default_factory=set)
    anonymous: dict[str, int] = field(default_factory=dict)  # flags by name
    chains: dict[RuleKey, list[nft.NftRule | str]] = field(default_factory=dict)
    elements: set[Member] = field(default_factory=set)
    data: dict[ElementKey, int] = field(default_factory=dict)
    tainted: set[SetName] = field(default_factory=set)
    replace: bool = False
    dormant: bool = False
    part: Part = Part.ALL

    @property
    def is_whole(self) -> bool:
        """Whether the table stands with all its sets, as we make them, and is in force."""
        whole = self.sets == EVERY_SET and self.maps == EVERY_MAP
        return self.table and whole and not (self.tainted or self.replace or self.dormant)

    @property
    def standing_chains(self) -> Container[RuleKey]:
        """Chains that the next write finds."""
        return () if self.replace else self.chains

    @property
    def standing_sets(self) -> Container[SetKey]:
        """Sets that the next write finds."""
        return () if self.replace else self.policy_sets

    def add_set(self, shape: nft.KernelSet, family: Family) -> None:
        if shape.flags & nft.NFT_SET_ANONYMOUS:
            self.anonymous[shape.name] = shape.flags
        elif shape.name in EVERY_MAP and shape == elements.map_shape(shape.name):
            self.maps.add(shape.name)
        elif (name := set_name(shape.name)) is None or shape != elements.set_shape(name, family):
            self.replace = True
        elif name in EVERY_SET:
            self.sets.add(name)
        else:
            self.policy_sets.add(SetKey(str(name)))

    def add_chain(self, table: str, name: str, hook: nft.Hook | None, policy: int) -> None:
        if table != TABLE:
            return
        key = render.chain_key(name)
        if key is None or hook != render.HOOKS.get(key) or policy != NF_ACCEPT:
            self.replace = True
        else:
            self.chains[key] = []

    def add_rule(self, table: str, chain: str, rule: nft.NftRule) -> None:
        key = render.chain_key(chain)
        if table == TABLE and key is not None:
            self.chains.setdefault(key, []).append(rule)


def set_name(name: str) -> SetName | None:
    """The set of ours that bears a name; None if none can."""
    try:
        return SetName(name)
    except ValueError:
        return None
