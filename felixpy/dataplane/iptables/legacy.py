"""The legacy variant of iptables: rules written by python-iptables, in one thread of its own for the whole process.

Invariant: libxtables keeps global state, so every call into python-iptables comes from one thread, for both families.
Must never open a table in which there is nothing to do: opening one brings it into being.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from felixpy.calc.rule import Table
from felixpy.config import ChainInsertMode
from felixpy.dataplane.iptables import legacy_tables, lock
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.iptables.plan import TablePlan
from felixpy.dataplane.iptables.save_text import SavedTable
from felixpy.dataplane.iptables.table_sizes import TableSize, TableSizes
from felixpy.dataplane.iptables.tools import Tools
from felixpy.dataplane.packet_filter import FilterError, FilterState, Part
from felixpy.model.net import Family

_TABLE_NAMES = {Family.V4: "ip_tables_names", Family.V6: "ip6_tables_names"}

PAUSE_PER_READING = 9.0
"""So many times as long as a reading took, no other one is asked for: another program that writes its rules without
end, of which a reading prints all, costs a tenth of the time."""


class _Thread:
    """The one thread, started by the first filter that writes and stopped when the last one closes."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._users: set[int] = set()

    def executor(self, user: object) -> ThreadPoolExecutor:
        self._users.add(id(user))
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="iptables-legacy")
        return self._executor

    def release(self, user: object) -> None:
        self._users.discard(id(user))
        if self._executor is not None and not self._users:
            self._executor.shutdown(wait=True)
            self._executor = None


_thread = _Thread()


class LegacyFilter(IptablesFilter):
    """Rules through python-iptables. ``commits`` counts whole-table commits.

    The sizes of the tables that hold rules of ours are remembered from each reading; a table that has another one now
    was changed. Our own write forgets its tables', so that it is read once after it, too.
    """

    variant: ClassVar[str] = "legacy"
    is_silent = True

    def __init__(
        self,
        family: Family,
        *,
        insert_mode: ChainInsertMode = ChainInsertMode.INSERT,
        max_ipset_size: int = 1048576,
        tools: Tools | None = None,
        patient: bool = False,
    ) -> None:
        super().__init__(family, insert_mode=insert_mode, max_ipset_size=max_ipset_size, tools=tools, patient=patient)
        self.commits = 0
        self.sizes = TableSizes(family)
        self._known: dict[str, TableSize | None] = {}
        """Sizes of the tables with rules of ours, as they were just before they were read; None: written since."""
        self._begun = self._ended = 0
        self._told = False
        self._quiet_until = 0.0

    def close(self) -> None:
        """Close the socket, and the thread if no other legacy filter uses it."""
        super().close()
        self.sizes.close()
        _thread.release(self)

    def looks_changed(self) -> bool:
        """Whether a table with rules of ours has another size than when it was read, or was written since."""
        if self._told or self._begun != self._ended or time.monotonic() < self._quiet_until:
            return False
        self._told = None in self._known.values() or self.sizes.ask(self._known) != self._known
        return self._told

    async def read(self, part: Part = Part.ALL) -> FilterState:
        """Read what is ours, and remember the sizes of its tables."""
        begun, is_quiet = self._begun, self._begun == self._ended
        # Before the rules are read: what is changed in between has another size than this, and is read again.
        sizes = self.sizes.ask(legacy_tables_of(self.family) & set(Table))
        state = await super().read(part)
        ours = {key.table.value for key in state.chains}
        is_quiet = is_quiet and begun == self._begun
        self._known = {table: sizes.get(table) if is_quiet else None for table in ours}
        self._told = False
        return state

    async def _save(self) -> dict[str, SavedTable]:
        started = time.monotonic()
        saved = await super()._save()
        now = time.monotonic()
        self._quiet_until = now + PAUSE_PER_READING * (now - started)
        return saved

    def _in_use(self) -> bool:
        return bool(legacy_tables_of(self.family))

    async def _commit(self, plans: Sequence[TablePlan]) -> dict[str, str]:
        if not plans:
            return {}
        self._writes += len(plans)
        self._known |= dict.fromkeys(plan.table for plan in plans)
        self._begun += 1
        thread, loop = _thread.executor(self), asyncio.get_running_loop()
        seconds = lock.COMMAND_SECONDS if self.patient else lock.APPLY_SECONDS
        try:
            outcome = await loop.run_in_executor(thread, legacy_tables.apply, self.family, tuple(plans), seconds)
        except FilterError:
            self._write_errors += len(plans)
            raise
        finally:
            self._ended += 1
        self.commits += len(plans) - len(outcome)
        self._write_errors += len(outcome)
        self._count_lines(plan for plan in plans if plan.table not in outcome)
        return outcome


def legacy_in_use(family: Family) -> bool:
    """Whether this network namespace has legacy tables of a family."""
    return bool(legacy_tables_of(family))


def legacy_tables_of(family: Family) -> set[str]:
    """The legacy tables of a family that this network namespace has."""
    # Not /proc/net, which is the namespace of the process's first thread.
    path = Path("/proc/thread-self/net") / _TABLE_NAMES[family]
    try:
        return set(path.read_text(encoding="ascii").split())
    except OSError:
        return set()
