"""Faults on demand: the n-th call that felixpy makes of the kernel or of a tool goes wrong, every other one is real.

One ``Injector`` stands between the agent and ``NetlinkSocket``, ``Tools``, python-iptables, /proc/sys and the
notification sockets. It only counts until it is armed; ``hits`` tells whether the fault was met.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from felixpy.dataplane import conntrack, interface_settings, packet_filter
from felixpy.dataplane.iptables import legacy_tables
from felixpy.dataplane.iptables.filter import IptablesFilter
from felixpy.dataplane.iptables.tools import Finished, Tools
from felixpy.dataplane.nftables.filter import NftablesFilter
from felixpy.netlink.message import Request
from felixpy.netlink.monitor import Monitor, open_monitor
from felixpy.netlink.nftables import NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
from felixpy.netlink.transport import DumpInterrupted, NetlinkSocket, Refusal

DELAY_SECONDS = 0.02
KERNELS_WORDS = "the kernel's own words"
sparing: ContextVar[bool] = ContextVar("sparing", default=False)
"""Set by a test around its own look at the kernel, which no fault shall meet."""


class Killed(BaseException):
    """The process is gone: nothing after this call happens."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong. ``point``: send, answer, message, dump, cut, tool, missing, legacy,
    sysctl, monitor, write (slow), filter (fails as a whole), conntrack, kill."""

    point: str
    errno: int = 0
    times: int = 1

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno, "")
        return "-".join(filter(None, (self.point, name, "" if self.times == 1 else f"{self.times}x")))

    def error(self) -> OSError:
        return OSError(self.errno, f"{os.strerror(self.errno)} (injected)")


@dataclass
class Injector:
    """Counts the calls of each point; while armed, those from number ``first`` on go wrong, ``fault.times`` of them."""

    fault: Fault | None = None
    first: int = 0
    seen: int = 0
    hits: int = 0
    met: list[str] = field(default_factory=list)
    culprit: Callable[[Request], bool] | None = None
    """Requests that the kernel refuses each time, whatever else is armed."""

    def arm(self, fault: Fault, first: int = 1) -> None:
        self.fault, self.first, self.seen, self.hits = fault, first, 0, 0
        self.met.clear()

    def disarm(self) -> int:
        """Returns how often the fault was met."""
        self.fault = None
        return self.hits

    def strikes(self, point: str, what: object = "") -> Fault | None:
        """Whether this call of a point goes wrong."""
        if self.fault is None or self.fault.point != point or sparing.get():
            return None
        self.seen += 1
        if not self.first <= self.seen < self.first + self.fault.times:
            return None
        self.hits += 1
        self.met.append(str(what))
        return self.fault

    # --- netlink -------------------------------------------------------------------------------------------------

    def transact(self, real: Callable[..., Any], socket: NetlinkSocket, requests: Sequence[Request], **how: Any) -> Any:
        if not requests:
            return real(socket, requests, **how)
        if fault := self.strikes("send", requests[0].type):
            socket.close()  # as the transport does on an error
            raise fault.error()
        if self.strikes("kill", "before"):
            raise Killed
        answer = self._send_without(real, socket, requests, self._culprits(requests), how)
        if fault := self.strikes("answer", requests[0].type):
            socket.close()
            raise fault.error()
        if self.strikes("kill", "after"):
            raise Killed
        return answer

    def _culprits(self, requests: Sequence[Request]) -> dict[int, Refusal]:
        refusals = {}
        for at, one in enumerate(requests):
            if not _may_be_refused(one):
                continue
            if self.culprit is not None and self.culprit(one):
                refusals[at] = Refusal(errno.EOPNOTSUPP, KERNELS_WORDS)
            elif fault := self.strikes("message", one.type):
                refusals[at] = Refusal(fault.errno, "injected")
        return refusals

    def _send_without(
        self,
        real: Callable[..., Any],
        socket: NetlinkSocket,
        requests: Sequence[Request],
        refusals: dict[int, Refusal],
        how: Any,
    ) -> dict[int, Refusal]:
        """The kernel refuses the culprits: a transaction as a whole, single messages each for itself."""
        if not refusals:
            return dict(real(socket, requests, **how))
        if how.get("batch"):
            return refusals
        kept = [at for at in range(len(requests)) if at not in refusals]
        answer = real(socket, [requests[at] for at in kept], **how)
        return refusals | {kept[at]: refusal for at, refusal in answer.items()}

    def dump(self, real: Callable[..., Any], socket: NetlinkSocket, request: Request) -> Iterator[Any]:
        if fault := self.strikes("dump", request.type):
            raise fault.error()
        if self.strikes("kill", "dump"):
            raise Killed
        cut = self.strikes("cut", request.type)
        for number, messages in enumerate(real(socket, request)):
            if cut and number == 0:
                yield messages[: len(messages) // 2]
                raise DumpInterrupted
            yield messages

    # --- everything else -----------------------------------------------------------------------------------------

    async def run(
        self, real: Callable[..., Any], tools: Tools, name: str, *arguments: str, stdin: str = ""
    ) -> Finished:
        if self.strikes("tool", name):
            return Finished(4, "", "injected: Another app is currently holding the xtables lock.")
        if self.strikes("missing", name):
            raise packet_filter.FilterError(f"the program {name} was not found (injected)")
        if self.strikes("kill", name):
            raise Killed
        finished: Finished = await real(tools, name, *arguments, stdin=stdin)
        if self.strikes("kill", f"after {name}"):
            raise Killed
        return finished

    def legacy(self, real: Callable[..., Any], library: Any, family: Any, plan: Any) -> None:
        if fault := self.strikes("legacy", plan.table):
            raise library.iptc.IPTCError(f"{os.strerror(fault.errno)} (injected)")
        if self.strikes("kill", f"before {plan.table}"):
            raise Killed
        real(library, family, plan)

    def sysctl(self, real: Callable[..., Any], path: str, value: int) -> str:
        if fault := self.strikes("sysctl", path):
            return f"cannot write {path}: {os.strerror(fault.errno)} (injected)"
        if self.strikes("kill", path):
            raise Killed
        return str(real(path, value))

    def read_monitor(self, real: Callable[..., Any], monitor: Monitor) -> Any:
        messages = real(monitor)
        if self.strikes("monitor"):
            monitor._socket.close()
            monitor._socket = open_monitor(monitor._protocol, monitor._groups, monitor._ignored)
            return None
        return messages

    async def write(self, real: Callable[..., Any], filtered: Any, change: Any) -> Any:
        if self.strikes("write", change):
            await asyncio.sleep(DELAY_SECONDS)
            answer = await real(filtered, change)
            await asyncio.sleep(DELAY_SECONDS)
            return answer
        if fault := self.strikes("filter", change):
            raise fault.error()
        return await real(filtered, change)

    def entries_of(self, real: Callable[..., Any], table: Any, addresses: Any) -> Any:
        if fault := self.strikes("conntrack"):
            time.sleep(DELAY_SECONDS)
            raise fault.error()
        return real(table, addresses)


def _may_be_refused(request: Request) -> bool:
    """Not the frame of a transaction: what it stands for are the messages in it."""
    return request.type not in (NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END)


@contextmanager
def injecting() -> Iterator[Injector]:
    """Put an injector between felixpy and the kernel for the length of a block."""
    injector = Injector()
    places: list[tuple[Any, str, Callable[..., Any]]] = [
        (NetlinkSocket, "transact", injector.transact),
        (NetlinkSocket, "dump", injector.dump),
        (Tools, "run", injector.run),
        (legacy_tables, "_apply_table", injector.legacy),
        (interface_settings, "write_proc", injector.sysctl),
        (Monitor, "read", injector.read_monitor),
        (NftablesFilter, "write", injector.write),
        (IptablesFilter, "write", injector.write),
        (conntrack.ConntrackTable, "entries_of", injector.entries_of),
    ]
    with ExitStack() as stack:
        for owner, name, way in places:
            real = getattr(owner, name)
            stack.enter_context(patch.object(owner, name, _through(way, real)))
        yield injector


def _through(way: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return way(real, *arguments, **named)

    return call
