"""Plans as nf_tables messages, for rules that are known: what somebody took away is put back without a process.

Invariant: ``iptables-nft-save`` prints the result like that of ``iptables-nft-restore``. Must never read or write the
kernel.
"""

from __future__ import annotations

from felixpy.dataplane.iptables.layout import jump_text
from felixpy.dataplane.iptables.nft_rules import KnownRules, Look
from felixpy.dataplane.iptables.plan import TablePlan
from felixpy.dataplane.iptables.render import PROTOCOL_NUMBERS
from felixpy.model.net import Family
from felixpy.netlink import nftables as nft
from felixpy.netlink.message import Request


def plan_requests(family: Family, plan: TablePlan, seen: Look, known: KnownRules) -> list[Request]:
    """Messages for one table as it was seen, without the frame of a transaction.

    Raises:
        LookupError: a rule or a built-in chain was never seen, so only the tool can write it.
    """
    table = plan.table
    chains = set(seen.rules.get(table, ()))
    requests: list[Request] = []
    missing = [built_in for built_in in plan.hook if built_in not in chains]
    if table not in seen.rules:
        requests.append(nft.new_table(family, table))
        missing = list(known.hooks[table])
    requests += [nft.new_chain(family, table, chain, known.hooks[table][chain]) for chain in missing]
    for chain, texts in plan.unhook.items():
        handles = _jumps(table, chain, seen, known)
        if len(handles) != len(texts):
            raise LookupError(f"{table} {chain} has other jumps than those that are known")
        requests += [nft.delete_rule(family, table, chain, handle) for handle in handles]
    requests += [nft.new_chain(family, table, chain) for chain in plan.rewrite if chain not in chains]
    requests += [nft.flush_chain(family, table, chain) for chain in (*plan.rewrite, *plan.delete) if chain in chains]
    for chain, rules in plan.rewrite.items():
        requests += [_new_rule(family, table, chain, text, known) for text in rules]
    for built_in, last in plan.hook.items():
        requests.append(_new_rule(family, table, built_in, jump_text(built_in), known, last=last))
    requests += [nft.delete_chain(family, table, chain) for chain in plan.delete if chain in chains]
    return requests


def _jumps(table: str, chain: str, seen: Look, known: KnownRules) -> list[int]:
    """Handles of our jumps in a chain of others."""
    rules = seen.rules.get(table, {}).get(chain, ())
    return [one.handle for one in rules if one is not None and known.text(table, chain, one) is not None]


def _new_rule(family: Family, table: str, chain: str, text: str, known: KnownRules, *, last: bool = True) -> Request:
    rule = known.rule(table, chain, text)
    return nft.new_rule(family, table, chain, rule, last=last, protocol=_protocol(text))


def _protocol(text: str) -> int | None:
    """The protocol that a rule matches: the kernel asks for it where it keeps a rule in the form of xtables."""
    before, option, after = text.partition("-p ")
    name = after.split(" ", 1)[0]
    if not option or (before and not before.endswith(" ")):
        return None
    return int(name) if name.isdecimal() else PROTOCOL_NUMBERS[name]
