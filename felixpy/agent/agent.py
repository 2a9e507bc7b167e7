"""The agent: composition root and life cycle. Updates come in, the kernel is made equal, the outcome goes out.

    source ──update──► store ──dirty──► calculation ──entries──► dataplane ──outcome──► status, metrics, log

One task writes to the kernel (``_apply_forever``). It wakes at once for the first change after idle, takes what has
come in meanwhile, and yields between chunks. Bugs crash the process; systemd or the kubelet restarts it, and a restart
is a resync.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from felixpy import __version__
from felixpy.agent import collector, sampling
from felixpy.agent import status as node_status
from felixpy.agent.comparisons import Comparisons
from felixpy.agent.configuration import Configuration
from felixpy.agent.inbox import Inbox
from felixpy.agent.leftovers import Leftovers
from felixpy.agent.outcome import Outcome, StatusPublisher
from felixpy.agent.policy_counts import PolicyCounts
from felixpy.agent.telling import Telling
from felixpy.calc.graph import Calculation
from felixpy.calc.host import Host
from felixpy.calc.overlay import workload_mtu
from felixpy.config import Failsafe, LiveSettings, Settings, SettingsSource
from felixpy.dataplane.apply import Dataplane
from felixpy.dataplane.backend import Backend
from felixpy.dataplane.links import Links
from felixpy.dataplane.packet_filter import FilterError
from felixpy.dataplane.watch import Watch
from felixpy.model.net import Family, Net
from felixpy.model.resources import Kind, ResourceKey, Update
from felixpy.node.record import Record
from felixpy.observe.endpoint_files import EndpointFiles
from felixpy.observe.endpoint_folders import Folders
from felixpy.observe.metrics import Metrics
from felixpy.observe.mtu_file import MTUFile
from felixpy.observe.samples import RecentFailures
from felixpy.sources import SyncState, SyncStatus
from felixpy.sources.ending import end
from felixpy.standing import Standing
from felixpy.store.store import Store

log = structlog.get_logger("felixpy")

UPDATES_PER_APPLY = 500
"""Updates absorbed before the kernel is written, so that bulk work never holds a new endpoint back for long."""

UPDATES_WAITING = 4 * UPDATES_PER_APPLY
"""With more than these, no more are waited for: each takes several times the memory of what it becomes."""

NOWHERE_SECONDS = 0.05
"""For so long an update of which nothing becomes yet waits for another one: a block that comes before its node."""

UPDATES_PER_TIDY = 50
"""Each endpoint costs the collector 20 µs once: now and then a millisecond, not 100 ms after 5,000."""

LONGEST_SLEEP_SECONDS = 10.0
UNTAKEN = "settings or host cannot be taken; will be tried again each second"
TCP = 6
RETRY_SECONDS = 1.0
"""Between two tries to take settings and facts of the host."""
RESYNC_END_SECONDS = 1.0


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
        live = LiveSettings(settings, sources)
        self.metrics = metrics or Metrics(settings.nodename)
        self.store = Store(settings.nodename)
        self.links = Links(time.monotonic)
        self.stream = SyncStatus(SyncState.CONNECTING, "no answer from the source yet")
        self.calculation = Calculation(self.store, settings, Host())
        self.dataplane = Dataplane(settings, self.links, {})
        self.dataplane.release.changed = self._wake_up
        self.watch = Watch(self.dataplane, self._wake_up, self._fail)
        self.recent = RecentFailures()
        self._standing = Standing(self.recent.note, self.recent.over)
        written = Standing(self.recent.note, self.recent.over, level="warning")
        self.mtu_file, self.mtu = MTUFile(settings.mtu_file, written), 0
        self._mtu_is_due = True
        self.files = EndpointFiles(settings.endpoint_status_path_prefix, folders=Folders.of(settings), standing=written)
        self.outcome = Outcome(self.calculation, self.dataplane, live, self.metrics, status, self.recent, self.files)
        self.leftovers = Leftovers(self._ended)
        self.configuration = Configuration(
            live, self.calculation, self.dataplane, self.watch, self.outcome, self._standing,
            on_settings=self._take_settings, on_filters=self._begin_anew, leftovers=self.leftovers,
        )  # fmt: skip
        self.complete = False
        self.record = Record()
        """What this node says of itself. Whoever is to tell it waits for ``own_changed``, and says that it has told it
        by ``introduced``: until then, if it ``introduces_itself``, nothing counts as complete."""
        self.own_changed = asyncio.Event()
        self.introduces_itself = False
        self.opened = asyncio.Event()
        """Set once the kernel was read: from then on updates are worked off as they come. What comes before is kept."""
        self.known = asyncio.Event()
        """Set once the snapshot is complete and its settings are taken."""
        self.ready: dict[Family, bool] = {}
        self.failures: dict[Family, str] = {}
        self._telling = Telling(self.metrics, self.recent, self.outcome, status)
        self.inbox = Inbox(settings.max_objects, self._is_known)
        self.adopted = self.left_over = 0
        self._on_settings = on_settings or (lambda settings: None)
        self._taken: list[Update] = []
        self._calculations: list[float] = []
        self._servers: list[Failsafe] = []
        self._untidied = 0
        self._unjudged: set[ResourceKey] = set()
        self._unjudged_until_complete: set[ResourceKey] = set()
        self._wake, self._calm = asyncio.Event(), asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._failure: BaseException | None = None
        self._own_node = ResourceKey(Kind.NODE, settings.nodename)
        self.comparisons = Comparisons(
            self.configuration, self.dataplane, self._standing, calm=self._calm, compared=self._wake_up
        )
        self.started = self.last_progress = time.monotonic()
        self.metrics.sampled.append(lambda: sampling.sample(self))
        self.metrics.read_first.append(PolicyCounts(self, self._standing, self._calm).read)

    # --- Sink ------------------------------------------------------------------------------------------------

    def update(self, update: Update) -> None:
        """Take an update; it waits in the ``inbox``."""
        limit = self.inbox.limit
        before = len(limit.left_out)
        if self.inbox.put(update):
            if self._alarm is not None and self.store.leads_nowhere(update):
                self._wake_up_later()
            else:
                self._wake_up()
        if len(limit.left_out) != before:
            self._telling.left_out(limit, before)
            self._wake_up()

    def _is_known(self, key: ResourceKey) -> bool:
        """Whether there is an endpoint, valid or not, by what was taken."""
        return key in self.store.remote or key in self.store.endpoints or self.outcome.is_invalid(key)

    def sync_status(self, status: SyncStatus) -> None:
        if status == self.stream:
            return
        self._telling.stream(status, self.stream)
        self.stream = status
        self._wake_up()

    def connected_to(self, peer: bytes, port: int) -> None:
        """Take the address of what this node is told by, each time that a source is connected."""
        self.configuration.connected_to(peer)
        self.will_ask(peer, port)

    def will_ask(self, peer: bytes, port: int) -> None:
        """A source is about to connect, or connected: no policy of ours stands in the way."""
        self._servers.append(Failsafe(TCP, port, Net.host(peer)))
        self._wake_up()

    def leave_alone(self, destinations: tuple[Net, ...]) -> None:
        """Take what ip-masq-agent's file says of destinations that keep their source."""
        self.configuration.leave_alone(destinations)
        self._wake_up()

    def ignored(self, what: str) -> None:
        self.outcome.problems.ignored(what)

    def _wake_up(self) -> None:
        self._calm.clear()
        self._wake.set()

    def _wake_up_later(self) -> None:
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(NOWHERE_SECONDS, self._wake_up)

    def _fail(self, error: BaseException) -> None:
        """Keep an error of a callback for the loop: the event loop would log it and go on."""
        self._failure = error
        self._wake_up()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    @property
    def settings(self) -> Settings:
        return self.configuration.settings

    @property
    def wireguard_keys(self) -> Mapping[Family, bytes]:
        """The public keys of this node's WireGuard devices that stand."""
        return self.dataplane.routing.devices.public_keys()

    @property
    def backend(self) -> Backend:
        return self.configuration.backend

    def families(self) -> tuple[Family, ...]:
        return self.configuration.families()

    def _take_settings(self, settings: Settings) -> None:
        self.comparisons.reschedule()
        self._on_settings(settings)
        self.files.use(settings.endpoint_status_path_prefix)

    def _begin_anew(self) -> None:
        """Other packet filters: no family is programmed yet."""
        self.comparisons.reschedule()
        self.ready = dict.fromkeys(self.families(), False)
        self._telling.not_ready(self.ready)

    # --- life cycle --------------------------------------------------------------------------------------------

    async def open(self, *, beside_felix: bool = False) -> None:
        """Choose the back-end and read the kernel: what an earlier run left is adopted.

        ``beside_felix``: also where rules of a Felix stand, to take the node over from it.

        Raises:
            OSError: the kernel refused (not root, no netlink).
            FilterError: the packet filter's tools are missing, or a Felix programs this node: each of the two would
                take the other's routes and rules for drift.
        """
        await self.configuration.open(beside_felix=beside_felix)

    def close(self) -> None:
        for alarm in (self._alarm, self._later):
            if alarm is not None:
                alarm.cancel()
        self.dataplane.close()

    async def run(self) -> None:
        """Follow the stream and the kernel until cancelled; leave the kernel as it is."""
        self.watch.open()
        try:
            await self._run()
        finally:
            self.watch.close()
            self.close()

    async def _run(self) -> None:
        await self.open()
        entries = {table.name: len(table.committed) for table in self.dataplane.tables()}
        self.adopted = sum(entries.values())
        self.left_over = self.dataplane.left_over()
        log.info("adopted", version=__version__, node=self.settings.nodename, backend=self.backend.value, **entries)
        self.opened.set()
        self.files.forget_earlier_boot()
        resync = asyncio.create_task(self.comparisons.run_forever())
        resync.add_done_callback(self._ended)
        try:
            await self._apply_forever()
        finally:
            await self.leftovers.stop(RESYNC_END_SECONDS)
            await end((resync,), RESYNC_END_SECONDS)

    def live(self) -> tuple[bool, str]:
        """Whether the loop makes progress, for ``/liveness``."""
        return node_status.live(self)

    def is_ready(self) -> tuple[bool, str]:
        """Whether the first complete apply succeeded in every supported family, for ``/readiness``."""
        return node_status.is_ready(self)

    def doubt(self) -> str:
        """Why a stream in sync is not believed, empty if it is: it has nothing, and the kernel has what an earlier run
        made. An update ends it, or a start on a kernel that has nothing.
        """
        return "" if self.complete or not (self.stream.bare and self.left_over) else node_status.doubt(self)

    def status(self) -> dict[str, Any]:
        """The agent's state as it is published on ``status/<node>``."""
        return node_status.summary(self)

    def describe(self) -> str:
        """The state in one line, for ``systemctl status``."""
        why = f": {self.stream.reason}" if self.stream.reason else ""
        return f"{self.is_ready()[1]}; stream {self.stream.state.value}{why}"

    def reload(self, sources: Sequence[SettingsSource]) -> None:
        """Take this machine's settings anew. What cannot change in a running agent stays, and is named in the log."""
        self.configuration.reload(sources)
        self._wake_up()

    # --- the loop ----------------------------------------------------------------------------------------------

    async def _apply_forever(self) -> None:
        while True:
            await self._sleep()
            started = self.last_progress = time.monotonic()
            self._wake.clear()
            if self._failure:
                raise self._failure
            if doubts := self.watch.take():
                await self.comparisons.settle(doubts)
            if self._later is not None:
                self._later.cancel()
                self._later = None
            if self.inbox:
                await self.inbox.collect()
            try:
                await self.absorb(UPDATES_PER_APPLY)
            except (OSError, FilterError) as error:
                self._standing.fails(UNTAKEN, str(error))
                self.configuration.retry_at = time.monotonic() + RETRY_SECONDS
            await self._apply()
            if self.inbox:
                self._wake_up()
            self._publish()
            waits = len(self.inbox) < UPDATES_WAITING
            if waits and not self.complete and self.stream.state is not SyncState.IN_SYNC:
                # What cannot be written yet is looked at each time: the snapshot itself gets half of the processor.
                await asyncio.sleep(min(time.monotonic() - started, 1.0))

    async def _sleep(self) -> None:
        """Until something is to do, or 10 s."""
        if not self._wake.is_set():
            self._calm.set()
        now = time.monotonic()
        due = min(
            now + LONGEST_SLEEP_SECONDS,
            self._telling.next_at(self.settings.reporting_interval_secs),
            self.dataplane.next_wake() or float("inf"),
        )
        due = min(due, self.files.next_retry(), self.outcome.next_at())
        due = min(due, self.configuration.retry_at) if self.configuration.due else due
        if self._alarm is not None:
            self._alarm.cancel()  # and not as soon as it is needless: then an update waits
        self._alarm = asyncio.get_running_loop().call_later(max(due - now, 0.0), self._wake.set)
        await self._wake.wait()
        self._calm.clear()

    async def absorb(self, limit: int | None = None) -> None:
        """Take pending updates into the store and the calculation, without touching the kernel.

        Raises:
            OSError, FilterError: the updates are taken, but settings, host or back-end are as before and stay due.
        """
        updates = self.inbox.take(limit)
        dirty: set[ResourceKey] = set()
        host = self.calculation.host
        for interface, up in self.dataplane.take_links().items():
            dirty |= self.store.link(interface, up=up)
        for update in updates:
            dirty |= self._take(update)
        started = time.perf_counter()
        wanted = self.calculation.calculate(dirty)
        if updates:
            self._calculations.append(time.perf_counter() - started)
        self.dataplane.want(wanted)
        self._taken += updates
        self._unjudged |= dirty
        self._unjudged |= self.calculation.use_peers(self.stream.peers)
        while self._servers:
            self.dataplane.keep_open(self._servers.pop(0))
        completes = not self.complete and self.stream.state is SyncState.IN_SYNC and not self.inbox
        completes = completes and not self.doubt()
        if self._own_node in dirty or (completes and self.introduces_itself):
            self.own_changed.set()
        completes = completes and not self.introduces_itself
        if (completes or self.configuration.due) and time.monotonic() >= self.configuration.retry_at:
            self.complete = self.complete or completes
            self.configuration.settings_due |= completes
            try:
                self._mtu_is_due = True
                await self.configuration.take(complete=self.complete)
            except (OSError, FilterError):
                self.complete = self.complete and not completes  # not before the stream's settings are known
                raise
            self._standing.works(UNTAKEN)
            if completes:
                self.calculation.policy.adopt(self.dataplane.class_numbers())
                self.dataplane.want(self.calculation.complete())
            if self.complete:
                self.known.set()
        if self.calculation.host is not host:
            self.own_changed.set()

    def introduced(self) -> None:
        """This node has said what it is, for the first time or anew."""
        if self.introduces_itself:
            self.introduces_itself = False
            self._wake_up()

    def _take(self, update: Update) -> set[ResourceKey]:
        key = update.key
        self.outcome.arrived(update)
        labels = self.store.labels if key == self._own_node else {}
        dirty = self.store.apply(update)
        self._mtu_is_due |= key.kind is Kind.IP_POOL or key == self._own_node
        if key.kind is Kind.FELIX_CONFIGURATION or (key == self._own_node and self.store.labels != labels):
            self.configuration.settings_due = True
        return dirty | {key}

    async def _apply(self) -> None:
        started = time.perf_counter()
        tidy = collector.tidy if self.outcome.measures else collector.keep
        report = await self.dataplane.apply(complete=self.complete)
        # The kernel comes first: everything that is only told or counted has time until here.
        self._count_taken()
        unjudged, self._unjudged = self._unjudged, set()
        if self.complete or self.dataplane.is_open:  # else nearly everything waits, and is looked at in every turn
            unjudged |= self.calculation.owners_of(report.looked_at)
        for interface in self.dataplane.take_judged_anew():
            unjudged |= {owner for owner in (self.store.interface_owner(interface),) if owner is not None}
        self.outcome.take(self._judged_now(unjudged))
        if report.written:
            self.metrics.writes.inc(by=report.written)
            took = time.perf_counter() - started
            self.metrics.apply_seconds.observe(took)
            self.metrics.apply_time.observe(took)
        self._telling.failures(report.failures, self.failures, self.backend.value)
        self.failures = report.failures
        if report.unknown:
            self.comparisons.ask()
        if self.configuration.look_at_devices():
            self.own_changed.set()
            self._wake_up()
        if self.complete and not self.inbox:
            await self._settled()
        if self._untidied >= UPDATES_PER_TIDY:
            self._untidied = 0
            tidy()

    def _judged_now(self, things: set[ResourceKey]) -> set[ResourceKey]:
        """Of these not the endpoints that cannot be up before the snapshot is complete: each is judged once then, or as
        soon as it is said that this may take long.
        """
        if self.complete or self.stream.state is SyncState.DEGRADED:
            kept, self._unjudged_until_complete = self._unjudged_until_complete, set()
            return things | kept
        if not self.dataplane.holds_classified:
            return things
        kept = {thing for thing in things if thing in self.store.endpoints and not self.outcome.follows(thing)}
        self._unjudged_until_complete |= kept
        return things - kept

    def _count_taken(self) -> None:
        taken, self._taken = self._taken, []
        for seconds in self._calculations:
            self.metrics.calculation_time.observe(seconds)
        self._calculations.clear()
        self._untidied += len(taken)
        self._telling.taken(taken)

    async def _settled(self) -> None:
        """A complete apply is over: say so once, and remove what other back-ends and families left."""
        begins = False
        for family in self.families():
            if not self.ready.get(family) and family not in self.failures:
                self.ready[family] = begins = True
                self._telling.ready(family, self.backend.value, time.monotonic() - self.started)
                self._untidied = UPDATES_PER_TIDY  # so at the end of this apply, once for both families
        if not self.outcome.measures:
            self.comparisons.ask()  # until then, settings without notifications are as the start's reading found them
        self.outcome.measures = True
        self.files.start()
        if self.dataplane.are_filters_written:
            self.calculation.policy.settled()
        if begins:
            self._publish()
        if not self.failures:
            self.leftovers.look(self.backend, self.families(), self.settings)

    def _tell_mtu(self) -> None:
        """What it depends on are pools, this node, settings and interfaces; the file's folder may come later."""
        if self._mtu_is_due:
            self._mtu_is_due = False
            self._take_mtu()
        self.mtu_file.set(self.mtu)

    def _take_mtu(self) -> None:
        found = workload_mtu(self.store, self.calculation.settings, self.calculation.host)
        mtu = found.mtu if found else 0
        if mtu != self.mtu:
            self.mtu = mtu
            self.own_changed.set()
            self.metrics.workload_mtu.set(mtu)
            self._telling.is_due = True

    def _publish(self) -> None:
        self.files.flush()
        self._tell_mtu()
        self._telling.publish(self.settings.reporting_interval_secs, self.status)
