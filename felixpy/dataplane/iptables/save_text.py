"""What a ``-save`` tool printed, reduced to what is ours and where our jumps stand.

    *raw
    :PREROUTING ACCEPT [0:0]
    :fpy-PREROUTING - [0:0]
    -A PREROUTING -m comment --comment felixpy -j fpy-PREROUTING
    -A fpy-PREROUTING -i cali+ -j fpy-from-workload
    COMMIT

Invariant: a rule of somebody else is counted, never kept. Must never decide what to do about what it finds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from felixpy.dataplane.iptables.layout import CHAIN_PREFIX, jump_text
from felixpy.dataplane.iptables.render import canonical

_JUMPS = (f"-j {CHAIN_PREFIX}", f"-g {CHAIN_PREFIX}")


@dataclass(slots=True)
class SavedTable:
    """One table: our chains with their rules, and our jumps in other chains as (position, text) pairs."""

    rules: dict[str, list[str]] = field(default_factory=dict)
    jumps: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)

    def hooked(self, built_in: str, last: bool) -> bool:
        """Whether exactly one jump of ours stands in a built-in chain, as it should and where it should."""
        position = self.lengths.get(built_in, 0) - 1 if last else 0
        return [(at, canonical(text)) for at, text in self.jumps.get(built_in, ())] == [(position, jump_text(built_in))]


def parse_save(text: str) -> dict[str, SavedTable]:
    """Tables by name. Lines that are no part of the format (warnings in comments) are passed over."""
    tables: dict[str, SavedTable] = {}
    table = SavedTable()
    for line in text.splitlines():
        if line.startswith("*"):
            table = tables.setdefault(line[1:].strip(), SavedTable())
        elif line.startswith(f":{CHAIN_PREFIX}"):
            table.rules.setdefault(line[1:].split(" ", 1)[0], [])
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            _add_rule(table, chain, rule)
    return tables


def _add_rule(table: SavedTable, chain: str, rule: str) -> None:
    if chain.startswith(CHAIN_PREFIX):
        table.rules.setdefault(chain, []).append(rule)
        return
    position = table.lengths.get(chain, 0)
    table.lengths[chain] = position + 1
    if any(jump in rule for jump in _JUMPS):
        table.jumps.setdefault(chain, []).append((position, rule))
