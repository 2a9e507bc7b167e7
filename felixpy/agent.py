"""The agent: composition root and life cycle. Updates come in, the kernel is made equal, the outcome goes out.

    source ──update──► store ──dirty──► calculation ──entries──► dataplane ──outcome──► status, metrics, log

One task writes to the kernel (``_apply_forever``). It wakes at once for the first change after idle, takes what has
come in meanwhile, and yields between chunks. Bugs crash the process; systemd or the kubelet restarts it, and a restart
is a resync.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any

import structlog

from felixpy import __version__
from felixpy.calc.graph import HOST, Calculation
from felixpy.calc.host import Host, supported_families
from felixpy.config import LiveSettings, Settings, SettingsSource
from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.backends import make_filter, remove_leftovers
from felixpy.dataplane.host import is_host_interface, read_host
from felixpy.dataplane.iptables.detect import detect
from felixpy.dataplane.links import Links
from felixpy.dataplane.packet_filter import FilterError
from felixpy.model.net import Family
from felixpy.model.resources import Kind, ResourceKey, Update
from felixpy.netlink.monitor import Monitor
from felixpy.netlink.rtnetlink import RTM_DELADDR, RTM_NEWADDR, address_interface
from felixpy.netlink.transport import Message
from felixpy.observe.metrics import Metrics
from felixpy.outcome import Outcome, StatusPublisher
from felixpy.sources import SyncState, SyncStatus
from felixpy.store import Store

log = structlog.get_logger("felixpy")

UPDATES_PER_APPLY = 500
"""Updates absorbed before the kernel is written, so that bulk work never holds a new endpoint back for long."""

RESYNC_STATES = {SyncState.CONNECTING: 1, SyncState.RESYNC: 2, SyncState.DEGRADED: 2, SyncState.IN_SYNC: 3}

MAX_PROBLEMS_IN_STATUS = 20
PROBLEMS_SECONDS = 1.0
"""News of problems alone are published no more often than this: a thousand bad objects are one message."""


class Agent:
    """The node's agent; also a ``Sink``. ``run`` never returns by itself.

    ``plan`` and ``show`` use the same object without ``run``: ``open``, let a source deliver, ``absorb``, look.
    """

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[SettingsSource] = (),
        *,
        status: StatusPublisher | None = None,
        metrics: Metrics | None = None,
        on_settings: Callable[[Settings], None] | None = None,
    ) -> None:
        self.live_settings = LiveSettings(settings, sources)
        self.settings = settings
        self.metrics = metrics or Metrics(settings.nodename)
        self.store = Store(settings.nodename)
        self.links = Links(time.monotonic)
        self.backend = Backend.NFTABLES
        self.stream = SyncStatus(SyncState.CONNECTING, "no answer from the source yet")
        self.calculation = Calculation(self.store, settings, Host())
        self.dataplane = Dataplane(settings, self.links, {})
        self.outcome = Outcome(self.calculation, self.dataplane, self.live_settings, self.metrics, status)
        self.complete = False
        self.ready: dict[Family, bool] = {}
        self._filters_of: object = None
        self._status = status
        self._on_settings = on_settings or (lambda settings: None)
        self._pending: dict[ResourceKey, Update] = {}
        self._wake = asyncio.Event()
        self._failure: Exception | None = None
        self._own_node = ResourceKey(Kind.NODE, settings.nodename)
        self._configuration_due = False
        self._host_due = False
        self._read_due = False
        self._leftovers_due = True
        self._status_due = True
        self._status_at = 0.0
        self._last_progress = time.monotonic()

    # --- Sink ------------------------------------------------------------------------------------------------

    def update(self, update: Update) -> None:
        """Take an update; the latest of a key wins, and memory is bounded by the number of keys."""
        self._pending.pop(update.key, None)
        self._pending[update.key] = update
        self._wake.set()

    def sync_status(self, status: SyncStatus) -> None:
        if status == self.stream:
            return
        level = log.warning if status.state is SyncState.DEGRADED else log.info
        level("stream", state=status.state.value, reason=status.reason, got=status.got, want=status.want)
        self.stream = status
        self.metrics.resync_state.set(RESYNC_STATES[status.state])
        self._status_due = True
        self._wake.set()

    def ignored(self, what: str) -> None:
        self.outcome.problems.ignored(what)

    # --- life cycle --------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Choose the back-end and read the kernel: what an earlier run left is adopted.

        Raises:
            OSError: the kernel refused (not root, no netlink).
            FilterError: the packet filter's tools are missing.
        """
        await self._read_kernel()
        self.calculation.host = await read_host(self.links, self.settings)
        self.dataplane.want(self.calculation.calculate({HOST}))
        await self._use_backend()

    def close(self) -> None:
        self.dataplane.close()

    async def run(self) -> None:
        """Follow the stream and the kernel until cancelled; leave the kernel as it is."""
        await self.open()
        entries = {table.name: len(table.committed) for table in self.dataplane.tables()}
        log.info("adopted", version=__version__, node=self.settings.nodename, backend=self.backend.value, **entries)
        monitor = Monitor()
        loop = asyncio.get_running_loop()
        loop.add_reader(monitor.fileno(), self._readable, monitor)
        try:
            await self._apply_forever()
        finally:
            loop.remove_reader(monitor.fileno())
            monitor.close()
            self.close()

    def live(self) -> tuple[bool, str]:
        """Whether the loop makes progress, for ``/liveness``."""
        stuck = time.monotonic() - self._last_progress
        return (False, f"no progress for {stuck:.0f} s") if stuck > 90 else (True, "live")

    def is_ready(self) -> tuple[bool, str]:
        """Whether the first complete apply succeeded in every supported family, for ``/readiness``."""
        missing = [str(f) for f in self._families() if not self.ready.get(f)]
        return (False, f"not ready: {', '.join(missing)}; {self.stream.reason}") if missing else (True, "ready")

    # --- the loop ----------------------------------------------------------------------------------------------

    async def _apply_forever(self) -> None:
        next_read = self._next_read()
        while True:
            await self._sleep(next_read)
            self._last_progress = time.monotonic()
            self._wake.clear()
            if self._failure:
                raise self._failure
            try:
                if self._read_due or time.monotonic() >= next_read:
                    await self._read_kernel()
                    self._read_due, next_read = False, self._next_read()
                await self.absorb(UPDATES_PER_APPLY)
                await self._apply()
            except (OSError, FilterError) as error:
                log.error("the kernel refused; will be tried again in a second", reason=str(error))
                self._read_due = True
                await asyncio.sleep(1)
            if self._pending or self._read_due:
                self._wake.set()
            self._publish()

    def _next_read(self) -> float:
        """When everything is read again, at the shortest refresh interval that is not off."""
        s = self.settings
        if self.backend is Backend.NFTABLES:
            filters: tuple[float, ...] = (s.nftables_refresh_interval,)
        else:
            filters = (s.iptables_refresh_interval, s.ipsets_refresh_interval)
        on = [each for each in (s.interface_refresh_interval, s.route_refresh_interval, *filters) if each > 0]
        return time.monotonic() + min(on) if on else float("inf")

    async def _sleep(self, next_read: float) -> None:
        due = [next_read, self._next_status(), time.monotonic() + 30]
        wake_at = self.dataplane.next_wake()
        if wake_at is not None:
            due.append(wake_at)
        delay = max(0.0, min(due) - time.monotonic())
        try:
            # Not wait_for: Python 3.11's loses a cancellation that meets the event.
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def absorb(self, limit: int | None = None) -> None:
        """Take pending updates into the store and the calculation, without touching the kernel."""
        updates = [self._pending.pop(key) for key in list(islice(self._pending, limit))]
        dirty: set[ResourceKey] = set()
        for update in updates:
            dirty |= self._take(update)
        if self.stream.state is SyncState.IN_SYNC and not self._pending and not self.complete:
            self.complete = self._configuration_due = True
        if self._configuration_due or self._host_due:
            await self._reconfigure()
        self.dataplane.want(self.calculation.calculate(dirty))
        self.outcome.judge(dirty)

    def _take(self, update: Update) -> set[ResourceKey]:
        key = update.key
        self.metrics.updates.labels(key.kind).inc()
        self.outcome.arrived(update)
        if key.kind is Kind.FELIX_CONFIGURATION or key == self._own_node:
            self._configuration_due = True
        return self.store.apply(update) | {key}

    async def _apply(self) -> None:
        started = time.perf_counter()
        report = await self.dataplane.apply(complete=self.complete)
        owners = {self.calculation.owner_of(key) for key in report.looked_at}
        self.outcome.judge(owner for owner in owners if owner is not None)
        if report.written:
            self.metrics.writes.inc(report.written)
            self.metrics.apply_seconds.observe(time.perf_counter() - started)
        for family, reason in report.failures.items():
            log.error("packet filter failed", family=str(family), backend=self.backend.value, reason=reason)
            self.metrics.failures.inc()
        if self.complete and not self._pending and not report.failures:
            await self._settled()

    async def _settled(self) -> None:
        """A complete apply succeeded: say so once, and remove what other back-ends and families left."""
        for family in self._families():
            if not self.ready.get(family):
                self.ready[family] = True
                self._status_due = True
                self.metrics.ready.labels(str(family)).set(1)
                log.info("ready", family=str(family), backend=self.backend.value)
        if self._leftovers_due:
            self._leftovers_due = False
            for problem in await remove_leftovers(self.backend, self._families(), self.settings):
                log.warning("leftovers of another back-end or family remain", reason=problem)

    # --- settings, back-end, kernel ----------------------------------------------------------------------------

    def _families(self) -> tuple[Family, ...]:
        return supported_families(self.settings, self.calculation.host)

    async def _reconfigure(self) -> None:
        """Take the stream's settings and the host's facts; what follows from them is calculated again."""
        settings, host = self._resolve(), self.calculation.host
        if self._host_due or settings != self.settings:
            host = await read_host(self.links, settings)
        if self._configuration_due or (settings, host) != (self.settings, self.calculation.host):
            await self._use_settings(settings)
            self.dataplane.want(self.calculation.reconfigure(settings, host))
            await self._use_backend()
            self.outcome.judge(
                {
                    *self.outcome.reported,
                    *self.outcome.problems,
                    *self.live_settings.problems,
                    *self.calculation.problems,
                }
            )
        self._configuration_due = self._host_due = False

    def _resolve(self) -> Settings:
        """The settings that the stream asks for now; before its snapshot is complete, this machine's."""
        if not self.complete or not self._configuration_due:
            return self.settings
        live, node = self.live_settings, self.store.nodes.get(self.store.node_name)
        known, waited = live.passed_over, live.waiting_for_restart
        settings = live.take(self.store.configurations.values(), node.labels if node else {})
        for what in sorted(live.passed_over - known):
            self.outcome.problems.ignored(what)
        if live.waiting_for_restart and live.waiting_for_restart != waited:
            names = ", ".join(live.waiting_for_restart)
            log.warning("restart needed", settings=names, next="the old values stay until the agent is restarted")
        return settings

    async def _use_settings(self, settings: Settings) -> None:
        if settings == self.settings:
            return
        log.info("settings changed", **_differences(self.settings, settings))
        self.settings = settings
        self._on_settings(settings)
        self.dataplane.configure(settings)
        await self._read_kernel()  # what of it is ours depends on the settings

    async def _use_backend(self) -> None:
        """Detect the back-end and give it the rules. On a change the new one takes over before the old one goes."""
        settings, families = self.settings, self._families()
        backend, evidence = await detect(settings)
        made_of = backend, families, settings.chain_insert_mode, settings.max_ipset_size
        if made_of != self._filters_of:
            log.info("back-end", backend=backend.value, reason=evidence)
            filters = {family: make_filter(backend, family, settings) for family in families}
            await self.dataplane.use_filters(filters, self.calculation.entries())
            self.backend, self._filters_of = backend, made_of
            self._leftovers_due = True
            self.ready = dict.fromkeys(families, False)
            for family in Family:
                self.metrics.ready.labels(str(family)).set(0)
        self.dataplane.want_rules(nftables=backend is Backend.NFTABLES)

    async def _read_kernel(self) -> None:
        """Read everything of ours; differences show at the next apply."""
        for family, reason in (await self.dataplane.read()).items():
            log.error("packet filter cannot be read", family=str(family), reason=reason)
        self._host_due = True

    def _readable(self, monitor: Monitor) -> None:
        """Keep an error for the loop: from here the event loop would log it and go on."""
        try:
            self._notified(monitor)
        except Exception as error:  # noqa: BLE001
            self._failure = error
            asyncio.get_running_loop().remove_reader(monitor.fileno())
        self._wake.set()

    def _notified(self, monitor: Monitor) -> None:
        """Links or host addresses changed."""
        messages = monitor.read()
        if messages is None:
            loop = asyncio.get_running_loop()
            log.warning("notifications were lost; everything is read again")
            loop.add_reader(monitor.fileno(), self._readable, monitor)
            self._read_due = True
        else:
            self.dataplane.link_events(self.links.notify(messages))
            if any(self._is_host_address(message) for message in messages):
                self._host_due = True

    def _is_host_address(self, message: Message) -> bool:
        if message.type not in (RTM_NEWADDR, RTM_DELADDR):
            return False
        name = self.links.name_of(address_interface(message))
        return name is not None and is_host_interface(name, self.settings)

    # --- outcome -----------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The agent's state as it is published on ``status/<node>``."""
        state, reason = self.stream.state.value, self.stream.reason
        if self.stream.state is SyncState.CONNECTING and not self.complete:
            state = "starting"
            reason = f"{reason}; the kernel keeps what an earlier run left"
        elif self.stream.state is SyncState.IN_SYNC and not self.is_ready()[0]:
            state, reason = SyncState.RESYNC.value, "the snapshot is complete; the kernel is being programmed"
        return {
            "state": state,
            "reason": reason,
            "got": self.stream.got,
            "want": self.stream.want,
            "families": {str(f.version): {"ready": self.ready.get(f, False)} for f in self._families()},
            "backend": self.backend.value,
            "endpoints": len(self.outcome.reported),
            "problems": [f"{key}: {reason}" for key, reason in self.outcome.problems.items()[:MAX_PROBLEMS_IN_STATUS]],
            "problem_count": len(self.outcome.problems),
            "version": __version__,
            "hostname": self.settings.nodename,
            "ts": time.time(),
        }

    def _next_status(self) -> float:
        """When the status is published again if nothing else happens."""
        interval = self.settings.reporting_interval_secs or float("inf")
        return self._status_at + (PROBLEMS_SECONDS if self.outcome.problems.has_news else interval)

    def _publish(self) -> None:
        if not self._status_due and time.monotonic() < self._next_status():
            return
        self._status_due, self._status_at, self.outcome.problems.has_news = False, time.monotonic(), False
        self.metrics.local_endpoints.set(len(self.outcome.reported))
        self.metrics.hosts.set(len(self.store.nodes))
        for table in self.dataplane.tables():
            self.metrics.entries.labels(table.name).set(len(table.desired))
        if self._status:
            self._status.publish_status(self.status())


def _differences(old: Settings, new: Settings) -> dict[str, str]:
    """Changed settings by name, new value as text; secrets cannot change live."""
    return {
        one.name: str(getattr(new, one.name))
        for one in fields(new)
        if getattr(old, one.name) != getattr(new, one.name) and "password" not in one.name
    }
