"""What one write must do to one iptables table, computed from what the table holds now.

Invariant: a plan names our chains and our jumps only, and applying it twice changes nothing more. Must never read or
write the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from felixpy.calc.rule import ChainKey, RuleKey, Table
from felixpy.config import ChainInsertMode
from felixpy.dataplane.iptables.layout import Place, chain_key, chain_name, jump_place, jump_text
from felixpy.dataplane.iptables.render import canonical
from felixpy.dataplane.iptables.save_text import SavedTable
from felixpy.dataplane.packet_filter import RenderedChain

_Wanted = Mapping[ChainKey, RenderedChain | None]
KNOWN_TABLES = frozenset(table.value for table in Table)


class TablePlan(Struct):
    """One table: old jumps to take out, chains to empty and fill, jumps to put in (True: last), chains to delete."""

    table: str
    unhook: dict[str, list[str]] = field(default_factory=dict)
    rewrite: dict[str, RenderedChain] = field(default_factory=dict)
    hook: dict[str, bool] = field(default_factory=dict)
    delete: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.unhook or self.rewrite or self.hook or self.delete)

    @property
    def lines(self) -> int:
        """Changes of rules and chains: the lines of its document without the frame."""
        rules = sum(map(len, self.rewrite.values())) + sum(map(len, self.unhook.values()))
        return len(self.rewrite) + rules + len(self.hook) + 2 * len(self.delete)


def present_chains(saved: Mapping[str, SavedTable], mode: ChainInsertMode) -> dict[RuleKey, RenderedChain]:
    """Our chains as the kernel has them; hook chains only if their jump is right."""
    chains: dict[RuleKey, RenderedChain] = {}
    for table in Table:
        for name, rules in saved.get(table, SavedTable()).rules.items():
            key = chain_key(table, name)
            if not key.is_hook or saved[table].hooked(key.name, jump_place(table, key.name, mode)):
                chains[key] = tuple(canonical(rule) for rule in rules)
    return chains


def foreign_chains(saved: Mapping[str, SavedTable]) -> list[str]:
    """Our chains in tables that we do not use."""
    return sorted(
        f"{table} {chain}" for table, content in saved.items() if table not in KNOWN_TABLES for chain in content.rules
    )


def plan_write(
    chains: Mapping[RuleKey, RenderedChain | None], saved: Mapping[str, SavedTable], mode: ChainInsertMode
) -> list[TablePlan]:
    """Plans for a change of chains; also removes our chains from tables that we do not use.

    The marks that the mangle table makes are there before the filter table asks for them, and until it no longer does.
    """
    plans = plan_removal({table: content for table, content in saved.items() if table not in KNOWN_TABLES})
    last: list[TablePlan] = []
    for table in Table:
        wanted = {key: rules for key, rules in chains.items() if isinstance(key, ChainKey) and key.table is table}
        for some, order in _parts(table, wanted, plans, last):
            if some:
                order.append(_plan_table(table, some, saved.get(table, SavedTable()), mode))
    return [plan for plan in [*plans, *last] if plan]


def _parts(
    table: Table, wanted: _Wanted, now: list[TablePlan], last: list[TablePlan]
) -> list[tuple[_Wanted, list[TablePlan]]]:
    if table is not Table.MANGLE:
        return [(wanted, now)]
    gone = {key: rules for key, rules in wanted.items() if rules is None}
    return [({key: rules for key, rules in wanted.items() if rules is not None}, now), (gone, last)]


def plan_removal(saved: Mapping[str, SavedTable]) -> list[TablePlan]:
    """Plans that remove everything of ours."""
    plans = (
        TablePlan(
            table,
            unhook={chain: [text for _, text in jumps] for chain, jumps in content.jumps.items()},
            delete=list(content.rules),
        )
        for table, content in saved.items()
    )
    return [plan for plan in plans if plan]


def _plan_table(
    table: Table, wanted: Mapping[ChainKey, RenderedChain | None], saved: SavedTable, mode: ChainInsertMode
) -> TablePlan:
    plan = TablePlan(table)
    for key, rules in wanted.items():
        name = chain_name(key.name)
        if rules is None:
            if name in saved.rules:
                plan.delete.append(name)
        else:
            plan.rewrite[name] = rules
        if key.is_hook:
            _plan_jump(plan, key, saved, mode)
    return plan


def _plan_jump(plan: TablePlan, key: ChainKey, saved: SavedTable, mode: ChainInsertMode) -> None:
    place = jump_place(key.table, key.name, mode)
    wanted = chain_name(key.name) in plan.rewrite
    if wanted and saved.hooked(key.name, place):
        return
    if key.name in saved.jumps:
        plan.unhook[key.name] = [text for _, text in saved.jumps[key.name]]
    if wanted:
        plan.hook[key.name] = place is not Place.FIRST


def restore_text(plans: Iterable[TablePlan]) -> str:
    """Plans as one document for ``iptables-restore --noflush``; each table is a transaction of its own.

    A declared chain is created, or emptied if it exists; references go before what they refer to.
    """
    lines: list[str] = []
    for plan in plans:
        lines.append(f"*{plan.table}")
        lines += [f":{chain} - [0:0]" for chain in [*plan.rewrite, *plan.delete]]
        lines += [f"-D {chain} {text}" for chain, jumps in plan.unhook.items() for text in jumps]
        lines += [f"-A {chain} {rule}" for chain, rules in plan.rewrite.items() for rule in rules]
        for built_in, last in plan.hook.items():
            lines.append(f"-{'A' if last else 'I'} {built_in} {jump_text(built_in)}")
        lines += [f"-X {chain}" for chain in plan.delete]
        lines.append("COMMIT")
    return "\n".join([*lines, ""])
