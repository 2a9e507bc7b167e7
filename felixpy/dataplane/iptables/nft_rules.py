"""What nf_tables holds of iptables' tables, read by netlink and told in the words of ``iptables-nft-save``.

The text of a rule is learned once, from the tool and from netlink at the same moment; from then on a look costs no
process. That matters when somebody has just changed rules: the kernel makes a process that ends, and with it closes its
netlink socket, wait for an RCU grace period, and nobody can write meanwhile (``nft_rcv_nl_event``).

Invariant: a rule in one of our chains that was never learned gets a text that no rule of ours has. Must never write.
"""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP
from typing import Final

from felixpy.dataplane.iptables.layout import CHAIN_PREFIX
from felixpy.dataplane.iptables.save_text import SavedTable
from felixpy.model.net import Family
from felixpy.netlink import nftables as nft
from felixpy.netlink.nftables import NftRule
from felixpy.netlink.transport import Message, NetlinkError, NetlinkSocket, attribute

IPTABLES_TABLES: Final = frozenset({"raw", "mangle", "nat", "filter", "security"})
UNKNOWN_RULE: Final = "(a rule of another program)"

Look = dict[str, dict[str, list[NftRule | None]]]
"""Rules by table and chain; None for a rule of somebody else that does not name a chain of ours."""


def table_names(netlink: NetlinkSocket, family: Family) -> set[str]:
    """Names of all nftables tables of a family; the nft variant's own are those of ``IPTABLES_TABLES``.

    Raises:
        OSError: the kernel cannot be asked.
    """
    try:
        messages = netlink.dump_all(nft.dump(nft.GETTABLE, family))
    except NetlinkError as error:
        if error.errno not in (EINVAL, EOPNOTSUPP):  # nfnetlink's answers for a kernel without nf_tables
            raise
        return set()
    return {nft.message_attributes(message)[1].rstrip(b"\0").decode(errors="replace") for message in messages}


async def look(socket: NetlinkSocket, family: Family) -> Look:
    """Read the chains and rules of iptables' tables of one family, in slices.

    Raises:
        NetlinkError: the kernel refused, or the tables kept changing.
    """
    found: Look = {}
    for message in await socket.dump_sliced(nft.dump(nft.GETCHAIN, family)):
        table, chain, *_ = nft.decode_chain(message)
        if table in IPTABLES_TABLES:
            found.setdefault(table, {})[chain] = []
    for table, chains in found.items():
        request = nft.dump(nft.GETRULE, family, attribute(1, nft.name(table)))
        for chain, rule in await socket.decode_sliced(request, _rule):
            chains.setdefault(chain, []).append(rule)
    return found


def _rule(message: Message) -> tuple[str, NftRule | None]:
    """The chain that a rule is in, and the rule less its counters, which never rest; None if no chain of ours is named.

    One is named as that chain or as the one that the rule jumps to.
    """
    chain = nft.chain_of(message, nft.NEWRULE)
    if CHAIN_PREFIX.encode() not in message.payload:
        return chain, None
    _, _, rule = nft.decode_rule(message)
    return chain, rule._replace(expressions=tuple(one for one in rule.expressions if one.name != "counter"))


class RuleTexts:
    """Texts of rules, by table, chain and what netlink tells of the rule."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, str, NftRule], str] = {}

    def learn(self, seen: Look, saved: dict[str, SavedTable]) -> None:
        """Take what netlink and the tool told of the same rules."""
        self._texts = {}
        for table, chains in seen.items():
            for chain, rules in chains.items():
                content = saved.get(table, SavedTable())
                texts = dict(content.jumps.get(chain, ())) | dict(enumerate(content.rules.get(chain, ())))
                for position, rule in enumerate(rules):
                    if rule is not None and position in texts:
                        self._texts[table, chain, rule] = texts[position]

    def saved(self, seen: Look) -> dict[str, SavedTable] | None:
        """What the tool would print; None if there is a jump to us, from a chain of others, that was never learned."""
        tables: dict[str, SavedTable] = {}
        for table, chains in seen.items():
            content = tables[table] = SavedTable()
            for chain, rules in chains.items():
                texts = [rule and self._texts.get((table, chain, rule)) for rule in rules]
                if chain.startswith(CHAIN_PREFIX):
                    content.rules[chain] = [text or UNKNOWN_RULE for text in texts]
                    continue
                content.lengths[chain] = len(rules)
                for position, (rule, text) in enumerate(zip(rules, texts, strict=True)):
                    if text is not None:
                        content.jumps.setdefault(chain, []).append((position, text))
                    elif rule is not None:
                        return None
        return tables
