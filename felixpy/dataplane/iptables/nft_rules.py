"""What nf_tables holds of iptables' tables, read by netlink and told in the words of ``iptables-nft-save``.

The text of a rule is learned once, from the tool and from netlink at the same moment; from then on a look costs no
process, and a rule that is known can be written again without one. That matters when somebody has just changed rules:
a process takes its time to start, and the kernel makes a process that ends, and with it closes its netlink socket, wait
for an RCU grace period, while nobody can write (``nft_rcv_nl_event``).

Invariant: a rule in one of our chains that was never learned gets a text that no rule of ours has. Must never write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import Struct, field

from felixpy.calc.rule import Table
from felixpy.dataplane.iptables.layout import BUILT_IN_CHAINS, CHAIN_PREFIX, MASQUERADE_CHAIN
from felixpy.dataplane.iptables.render import canonical
from felixpy.dataplane.iptables.save_text import SavedTable
from felixpy.model.net import Family
from felixpy.netlink import nftables as nft
from felixpy.netlink.expressions import MATCH_INFO, MATCH_NAME, NFT_JUMP, Expression, verdict
from felixpy.netlink.message import Message, text_attribute
from felixpy.netlink.nftables import Hook, NftRule
from felixpy.netlink.transport import NetlinkError, NetlinkSocket

IPTABLES_TABLES: Final = frozenset({"raw", "mangle", "nat", "filter", "security"})
_MAY_MATTER = re.compile("|".join([CHAIN_PREFIX, *BUILT_IN_CHAINS]).encode())
_MASQUERADE = verdict(NFT_JUMP, MASQUERADE_CHAIN)
UNKNOWN_RULE: Final = "(a rule of another program)"


class SeenRule(NamedTuple):
    """A rule and the number that the kernel gave it."""

    handle: int
    rule: NftRule


class Look(Struct):
    """Rules by table and chain, of our chains and the built-in ones, and where base chains are attached.

    Of a table in which we use no chain and have none, no rules are read. None stands for a rule of somebody else that
    does not name a chain of ours. ``masquerades`` as in ``SavedTable``.
    """

    rules: dict[str, dict[str, list[SeenRule | None]]] = field(default_factory=dict)
    hooks: dict[str, dict[str, Hook]] = field(default_factory=dict)
    masquerades: dict[str, dict[str, int]] = field(default_factory=dict)


def table_names(netlink: NetlinkSocket, family: Family) -> set[str]:
    """Names of all nftables tables of a family; the nft variant's own are those of ``IPTABLES_TABLES``.

    Raises:
        OSError: the kernel cannot be asked.
    """
    try:
        messages = netlink.dump_all(nft.dump(nft.GETTABLE, family))
    except NetlinkError as error:
        if error.errno not in nft.NOT_IN_KERNEL:
            raise
        return set()
    return {nft.message_attributes(message)[1].rstrip(b"\0").decode(errors="replace") for message in messages}


async def look(socket: NetlinkSocket, family: Family) -> Look:
    """Read the chains and rules of iptables' tables of one family, in slices.

    Raises:
        NetlinkError: the kernel refused, or the tables kept changing.
    """
    found = Look({table: {} for table in table_names(socket, family) & IPTABLES_TABLES})
    if not found.rules:
        return found
    chains = await socket.decode_sliced(nft.dump(nft.GETCHAIN, family), _chain)
    for table, chain, hook in filter(None, chains):
        found.rules.setdefault(table, {})[chain] = []
        if hook is not None:
            found.hooks.setdefault(table, {})[chain] = hook
    for table, wanted in found.rules.items():
        ours = any(chain.startswith(CHAIN_PREFIX) for chain in wanted)
        if table in set(Table) and None in chains:  # those of others, and so may most of the rules be: chain by chain
            for chain in wanted:
                await _read_rules(socket, family, table, found, chain)
        elif table in set(Table) or ours:
            await _read_rules(socket, family, table, found)
    return found


async def _read_rules(socket: NetlinkSocket, family: Family, table: str, found: Look, of: str = "") -> None:
    """Read the rules of a table, of one chain if it is named."""
    place = [
        text_attribute(nft.RULE_TABLE, table),
        *([text_attribute(nft.RULE_CHAIN, of)] if of else []),
    ]
    for chain, rule, masquerades in await socket.decode_sliced(nft.dump(nft.GETRULE, family, *place), _rule):
        if chain == of or not of:  # a kernel that does not know the filter tells of every chain
            rules = found.rules[table].setdefault(chain, [])
            if masquerades:
                found.masquerades.setdefault(table, {})[chain] = len(rules)
            rules.append(rule)


def _chain(message: Message) -> tuple[str, str, Hook | None] | None:
    """Table, name and hook of a chain of ours or a built-in one; None for the chain of another program."""
    if not _MAY_MATTER.search(message.payload):
        return None  # of which there are thousands where kube-proxy uses iptables
    table, chain, hook, _ = nft.decode_chain(message)
    matters = table in IPTABLES_TABLES and (chain in BUILT_IN_CHAINS or chain.startswith(CHAIN_PREFIX))
    return (table, chain, hook) if matters else None


def _rule(message: Message) -> tuple[str, SeenRule | None, bool]:
    """The chain that a rule is in, the rule with counters at zero, for they never rest, or None as in ``Look``; and
    whether it jumps to kube-proxy's masquerade.

    A chain of ours is named as the one that the rule is in, or as the one that it jumps to.
    """
    chain = nft.chain_of(message, nft.NEWRULE)
    if CHAIN_PREFIX.encode() not in message.payload:
        named = MASQUERADE_CHAIN.encode() in message.payload
        return chain, None, named and _MASQUERADE in nft.decode_rule(message)[2].expressions
    _, _, rule = nft.decode_rule(message)
    expressions = tuple(Expression("counter", ()) if one.name == "counter" else one for one in rule.expressions)
    return chain, SeenRule(nft.rule_handle(message), rule._replace(expressions=expressions)), False


class KnownRules:
    """Texts of rules and what netlink tells of them, in both directions, by table and chain.

    ``set_indices`` are the kernel's numbers of our IP sets at the time: rules name sets by them.
    """

    def __init__(self) -> None:
        self._texts: dict[tuple[str, str, NftRule], str] = {}
        self._rules: dict[tuple[str, str, str], NftRule] = {}
        self._hidden: frozenset[str] = frozenset()
        self.hooks: dict[str, dict[str, Hook]] = {}
        self.set_indices: Mapping[str, int] | None = None

    def learn(self, seen: Look, saved: dict[str, SavedTable], set_indices: Mapping[str, int] | None) -> None:
        """Take what netlink and the tool told of the same rules."""
        self._texts, self._rules = {}, {}
        self._hidden = frozenset(table for table, content in saved.items() if content.hidden)
        self.hooks, self.set_indices = seen.hooks, set_indices
        for table, chains in seen.rules.items():
            for chain, rules in chains.items():
                content = saved.get(table, SavedTable())
                texts = dict(content.jumps.get(chain, ())) | dict(enumerate(content.rules.get(chain, ())))
                for position, one in enumerate(rules):
                    if one is not None and position in texts:
                        rule = _commented(one.rule)
                        self._texts[table, chain, one.rule] = self._texts[table, chain, rule] = texts[position]
                        self._rules[table, chain, canonical(texts[position])] = rule

    def text(self, table: str, chain: str, one: SeenRule | None) -> str | None:
        """What the tool prints for a rule; None if it never did."""
        return None if one is None else self._texts.get((table, chain, one.rule))

    def rule(self, table: str, chain: str, text: str) -> NftRule:
        """A rule that the tool prints as a (canonical) text.

        Raises:
            KeyError: it was never seen in that chain.
        """
        return self._rules[table, chain, text]

    def saved(self, seen: Look) -> dict[str, SavedTable] | None:
        """What the tool would print; None if there is a jump to us, from a chain of others, that was never learned.

        Nor is it known of what holds a table that was hidden from the tool.
        """
        if not self._hidden.isdisjoint(seen.rules):
            return None
        tables: dict[str, SavedTable] = {}
        for table, chains in seen.rules.items():
            content = tables[table] = SavedTable(masquerades=seen.masquerades.get(table, {}))
            for chain, rules in chains.items():
                texts = [self.text(table, chain, one) for one in rules]
                if chain.startswith(CHAIN_PREFIX):
                    content.rules[chain] = [text or UNKNOWN_RULE for text in texts]
                    continue
                content.lengths[chain] = len(rules)
                for position, (one, text) in enumerate(zip(rules, texts, strict=True)):
                    if text is not None:
                        content.jumps.setdefault(chain, []).append((position, text))
                    elif one is not None:
                        return None
        return tables


def _commented(rule: NftRule) -> NftRule:
    """A rule whose comment is a match of xtables as one that bears it, which the tools read as the same.

    For a match the kernel waits until what was deleted last is destroyed, an RCU grace period (``__nft_match_init``).
    """
    for index, one in enumerate(rule.expressions):
        if one.name != "match":
            continue
        values = dict(one.attributes)
        if values[MATCH_NAME] == b"comment\0":
            comment = values[MATCH_INFO].partition(b"\0")[0].decode()
            return NftRule(rule.expressions[:index] + rule.expressions[index + 1 :], comment)
    return rule
