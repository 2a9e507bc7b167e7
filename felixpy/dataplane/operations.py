"""What an apply would do, in words for people."""

from __future__ import annotations

from typing import Any

from felixpy.calc.entries import (
    ADDRESS_MAPS,
    ElementKey,
    Ipip,
    NeighbourKey,
    Nexthop,
    Peer,
    Route,
    SettingsKey,
    SettingValues,
    Vxlan,
    WireGuard,
)
from felixpy.calc.rule import ChainKey
from felixpy.dataplane.report import Operation
from felixpy.dataplane.table import KeyedTable
from felixpy.model.net import format_address


def operations_of(table: KeyedTable[Any, Any, Any], now: float) -> list[Operation]:
    """What a write of one table would change, at a time on its clock."""
    table.recall()
    delta = table.delta(now)
    operations = []
    for key, value in delta.put.items():
        wanted = table.desired[key]
        verb = "change" if key in table.committed else "add"
        if isinstance(wanted, SettingValues):
            wanted = wanted.besides(table.committed.get(key, {}))
        operations.append(Operation((verb, table.name, _text(key, wanted if wanted is not None else value))))
    for key, value in delta.remove.items():
        if not isinstance(key, SettingsKey):
            operations.append(Operation(("remove", table.name, _text(key, value))))
    return operations


def _text(key: object, value: object) -> str:
    if isinstance(value, Route | SettingValues | Nexthop | Vxlan | Ipip | WireGuard | Peer):
        return f"{key} {value}"
    if isinstance(key, NeighbourKey) and isinstance(value, bytes):
        return f"{key} lladdr {value.hex(':')}"
    if isinstance(key, ElementKey) and key.set in ADDRESS_MAPS and isinstance(value, int):
        return f"{key} : {format_address(value.to_bytes(len(key.net.packed)))}"
    if isinstance(key, ChainKey) and isinstance(value, tuple):
        return f"chain {key}: {len(value)} rules"
    return str(key)
