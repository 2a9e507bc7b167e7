"""The legacy variant of iptables: rules written by python-iptables, in one thread of its own for the whole process.

Invariant: libxtables keeps global state, so every call into python-iptables comes from one thread, for both families.
Must never open a table in which there is nothing to do: opening one brings it into being.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from felixpy.config import ChainInsertMode
from felixpy.dataplane.iptables import legacy_tables, lock
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.iptables.plan import TablePlan
from felixpy.dataplane.iptables.tools import Tools
from felixpy.dataplane.packet_filter import FilterError
from felixpy.model.net import Family

_TABLE_NAMES = {Family.V4: "ip_tables_names", Family.V6: "ip6_tables_names"}


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
    """Rules through python-iptables. ``commits`` counts whole-table commits."""

    variant: ClassVar[str] = "legacy"

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

    def close(self) -> None:
        """Close the socket, and the thread if no other legacy filter uses it."""
        super().close()
        _thread.release(self)

    def _in_use(self) -> bool:
        return legacy_in_use(self.family)

    async def _commit(self, plans: Sequence[TablePlan]) -> dict[str, str]:
        if not plans:
            return {}
        self._writes += len(plans)
        thread, loop = _thread.executor(self), asyncio.get_running_loop()
        seconds = lock.COMMAND_SECONDS if self.patient else lock.APPLY_SECONDS
        try:
            outcome = await loop.run_in_executor(thread, legacy_tables.apply, self.family, tuple(plans), seconds)
        except FilterError:
            self._write_errors += len(plans)
            raise
        self.commits += len(plans) - len(outcome)
        self._write_errors += len(outcome)
        self._count_lines(plan for plan in plans if plan.table not in outcome)
        return outcome


def legacy_in_use(family: Family) -> bool:
    """Whether this network namespace has legacy tables of a family."""
    # Not /proc/net, which is the namespace of the process's first thread.
    path = Path("/proc/thread-self/net") / _TABLE_NAMES[family]
    try:
        return bool(path.read_text(encoding="ascii").strip())
    except OSError:
        return False
