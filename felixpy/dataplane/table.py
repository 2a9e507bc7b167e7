"""A keyed table: what is wanted, what the kernel is believed to hold, and which keys may differ.

The only shape the dataplane knows. A difference is computed on dirty keys only; start, resync, drift, link events and
retries differ only in how keys become dirty. Never does I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from itertools import repeat
from typing import Final, Generic, NamedTuple, TypeVar

from msgspec import Struct, field

from felixpy.slices import emptied, in_slices
from felixpy.store.index import Index

K = TypeVar("K")
D = TypeVar("D")
C = TypeVar("C")


class Waiting(Exception):
    """A wanted entry cannot be written yet, for a reason that an event will change (no interface, link down).

    ``gone``: it has no place in the kernel now, so what stands there under its key goes, if it is ours.
    """

    def __init__(self, reason: str, *, gone: bool = False) -> None:
        super().__init__(reason)
        self.gone = gone


class Refused(NamedTuple):
    """A key in quarantine: the kernel's words, tries so far, and when (on the caller's clock) to try again."""

    reason: str
    tries: int
    retry_at: float


class Contest(NamedTuple):
    """How often another program changed a key that was right: first and last time, and count, within a window."""

    first: float
    last: float
    times: int


class Missing:
    """The kernel has no entry under a key; elements have the value None."""


MISSING: Final = Missing()

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.1, 30.0
CONTEST_WINDOW_SECONDS = 60.0
CONTEST_TOLERATED = 10
MAX_CONTESTS = 10_000


class Reading(Generic[K]):
    """A block during which keys are collected; a class of its own, as ``contextmanager`` costs each write 20 calls."""

    __slots__ = ("_newer", "_readers")

    def __init__(self, readers: list[set[K]]) -> None:
        self._readers = readers
        self._newer: set[K] = set()

    def begin(self) -> set[K]:
        self._readers.append(self._newer)
        return self._newer

    def end(self) -> None:
        self._readers[:] = [one for one in self._readers if one is not self._newer]

    def __enter__(self) -> set[K]:
        return self.begin()

    def __exit__(self, *error: object) -> None:
        self.end()


class Delta(Struct, Generic[K, C]):
    """What has to be written: entries to create or replace, entries to remove with the value they have."""

    put: dict[K, C] = field(default_factory=dict)
    remove: dict[K, C] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.put or self.remove)


class KeyedTable(Generic[K, D, C]):
    """Desired values of type D become kernel values of type C by ``resolve``, which may raise ``Waiting``.

    ``ours`` says whether the kernel value of an entry that nobody wants any more is ours: another program's, seen while
    the entry was wanted, is forgotten and stays. ``removable`` says whether an unwanted entry may go now; one that may
    not stays dirty. ``interface_of`` names the interface that an entry hangs on, or what else it does, if entries do,
    so that an event there costs no more than that interface's own. ``describe`` puts a kernel value into words.
    """

    def __init__(
        self,
        name: str,
        resolve: Callable[[K, D], C],
        *,
        ours: Callable[[K, C], bool] = lambda key, value: True,
        removable: Callable[[K, C], bool] = lambda key, value: True,
        interface_of: Callable[[K, D], Hashable] | None = None,
        describe: Callable[[C], str] = str,
    ) -> None:
        self.name = name
        self.desired: dict[K, D] = {}
        self.committed: dict[K, C] = {}
        self.dirty: set[K] = set()
        self._aside: set[K] = set()
        self.waiting: dict[K, str] = {}
        self.refused: dict[K, Refused] = {}
        self._resolve = resolve
        self._ours = ours
        self._removable = removable
        self._interface_of = interface_of
        self._describe = describe
        self._by_interface: Index[Hashable, K] = Index()
        self._readers: list[set[K]] = []
        self._adopted = False
        self.contests: dict[K, Contest] = {}
        self.drifted = 0
        self.repairs: Counter[str] = Counter()
        """Entries that were right and are no more, by cause; ``drifted`` counts those that another program did."""
        self._changed_by: Callable[[], str] = str

    def want(self, key: K, value: D) -> None:
        interface_of, desired = self._interface_of, self.desired
        if interface_of is not None:
            former, interface = interface_of(key, desired[key]) if key in desired else None, interface_of(key, value)
            if former != interface:
                if former is not None:
                    self._by_interface.discard(former, key)
                if interface is not None:
                    self._by_interface.add(interface, key)
        if self.committed and key not in desired and key in self.committed:
            self.committed[key] = self.committed.pop(key)  # by this very key: an adopted one is another object
        desired[key] = value
        if self.refused:
            self.refused.pop(key, None)
        if self._aside:
            self._aside.discard(key)
        self.dirty.add(key)

    def drop(self, key: K) -> None:
        """No longer want a key."""
        if key in self.desired:
            self._unindex(key)
            del self.desired[key]
        if self.refused:
            self.refused.pop(key, None)
        self.dirty.add(key)

    def interface_changed(self, interface: Hashable, *, lost: bool) -> None:
        """Look again at what hangs on an interface; ``lost``: the kernel has dropped it all."""
        keys = self._by_interface.at(interface)
        for key in keys:
            self.contests.pop(key, None)
        if lost:
            self.forget(keys)
        self.mark(keys)

    def wanted_on(self, interface: Hashable) -> Collection[K]:
        """Keys of what is wanted and hangs on an interface; valid until the next change."""
        return self._by_interface.at(interface)

    def mark(self, keys: Iterable[K]) -> None:
        """Look at keys again, at once even if they were refused."""
        for key in keys:
            self.refused.pop(key, None)
            self._touch(key)  # a write that is under way must not take it for settled
            self.dirty.add(key)

    def reading(self) -> Reading[K]:
        """The kernel is being read: collects keys written or observed meanwhile, of which the read knows less."""
        return Reading(self._readers)

    async def adopt(self, found: dict[K, C], newer: set[K], now: float) -> None:
        """Take a fresh dump, in slices; ``found`` is empty after it. Keys whose kernel value is not what was believed
        are looked at again.
        """
        committed = self.committed
        async for entries in in_slices(zip(list(committed), list(committed.values()), strict=True), 64):
            keys, believed = zip(*entries, strict=True)
            values = tuple(map(found.pop, keys, repeat(MISSING)))
            if values == believed:
                continue  # nearly always, and compared without a loop in Python; what changed meanwhile is newer
            for key, value in zip(keys, values, strict=True):
                if committed.get(key, MISSING) != value and key not in newer:
                    self._believe(key, value, now)
        async for others in in_slices(emptied(found, found.popitem), 64):
            for key, value in others:  # of keys that nobody knew of when the first loop began
                if committed.get(key, MISSING) != value and key not in newer:
                    self._believe(key, value, now)
        self._adopted = True

    def adopt_interface(self, interface: str, found: Mapping[K, C], newer: set[K], now: float) -> None:
        """Take a fresh dump of what hangs on one interface: wanted entries that it lacks are gone."""
        for key in {*found, *self._by_interface.at(interface)} - newer:
            self._believe(key, found.get(key, MISSING), now)

    def observe(self, key: K, value: C | Missing, now: float) -> None:
        """Take a notification: the kernel now has this value, or nothing, for a key that is ours."""
        self._believe(key, value, now)

    def learn(self, key: K, value: C) -> None:
        """Take what the kernel was just seen to hold under a wanted key, by whoever resolves or writes it: nobody's
        change, and newer than a read that is under way.
        """
        self._touch(key)
        self.committed[key] = value

    def rename(self, old: K, new: K) -> None:
        """What the kernel holds was known by another key: nothing has changed there."""
        self._touch(old)
        value = self.committed.pop(old)
        self.dirty.discard(old)
        self._aside.discard(old)
        self.learn(new, value)
        self.dirty.add(new)

    @contextmanager
    def blaming(self, changed_by: Callable[[], str]) -> Iterator[None]:
        """What is taken meanwhile was done "by …", as ``changed_by`` says; for the words of a contest only."""
        self._changed_by = changed_by
        try:
            yield
        finally:
            self._changed_by = str

    def _touch(self, key: K) -> None:
        for newer in self._readers:
            newer.add(key)

    def _believe(self, key: K, value: C | Missing, now: float) -> None:
        self._touch(key)
        old = self.committed.get(key, MISSING)
        if old == value:
            return
        if isinstance(value, Missing):
            del self.committed[key]
        else:
            self.committed[key] = value
        was_right = self._adopted and key not in self.dirty and key not in self._aside
        self.dirty.add(key)
        if was_right and not (isinstance(value, Missing) and self._waits(key)):
            self._contest(key, value, now)

    def _waits(self, key: K) -> bool:
        """Whether a wanted entry cannot be there now anyway (its interface is down or gone)."""
        if key not in self.desired:
            return False
        try:
            self._resolve(key, self.desired[key])
        except Waiting:
            return True
        return False

    def _contest(self, key: K, value: C | Missing, now: float) -> None:
        """Somebody changed what was right. Repaired at once, unless it happens again and again."""
        contest = self.contests.get(key)
        if contest is None or now - contest.last > CONTEST_WINDOW_SECONDS:
            if len(self.contests) >= MAX_CONTESTS:
                self.contests.clear()
            contest = Contest(now, now, 0)
        contest = Contest(contest.first, now, contest.times + 1)
        self.contests[key] = contest
        self.drifted += 1
        self.repairs["removed" if isinstance(value, Missing) else "changed"] += 1
        if contest.times > CONTEST_TOLERATED:
            pause = min(2.0 ** (contest.times - CONTEST_TOLERATED - 1), LAST_RETRY_SECONDS)
            did = "removed" if isinstance(value, Missing) else f"made it {self._describe(value)}"
            did += f" {by}" if (by := self._changed_by()) else ""
            rate = contest.times / max(now - contest.first, 1.0)
            reason = (
                f"another program keeps changing this: {contest.times} times, {rate:.1f} a second, last {did}; "
                f"repaired again in {pause:.0f} s; find that program and stop it"
            )
            self.refused[key] = Refused(reason, 1, now + pause)

    def forget(self, keys: Iterable[K]) -> None:
        """The kernel has lost these entries by itself (a link went down)."""
        for key in keys:
            self.repairs["link lost"] += key in self.committed
            self.committed.pop(key, None)
            self._touch(key)
            self.dirty.add(key)

    def doubt(self) -> None:
        """Look at everything again (notifications were lost)."""
        self.dirty.update(self.committed, self.desired)

    def set_aside(self, held: Callable[[K], bool] | None = None) -> None:
        """Look at nothing that nobody wants until ``recall``: an agent that starts adopts thousands of entries, and may
        remove none before it has taken the whole snapshot, in many turns. Nor at what is ``held`` until then.
        """
        aside = self.dirty.difference(self.desired)
        if held is not None:
            aside.update(filter(held, self.dirty))
        if aside:
            self.dirty = self.dirty - aside  # not in place: an emptied set keeps its size
            self._aside |= aside

    def is_due(self, key: K) -> bool:
        """Whether a key has to be looked at, now or when it is recalled."""
        return key in self.dirty or key in self._aside

    @property
    def is_written(self) -> bool:
        """Whether the kernel is believed to hold what is wanted, but for what waits."""
        return not (self.dirty or self._aside or self.refused)

    def recall(self) -> None:
        """Look at what was set aside."""
        self.dirty |= self._aside
        self._aside = set()

    def delta(self, now: float) -> Delta[K, C]:
        """Differences on dirty keys. Keys without a difference, or that wait for an event, become clean."""
        delta: Delta[K, C] = Delta()
        if not self.dirty:
            return delta
        settled: list[K] = []
        desired, committed, refused, waiting = self.desired, self.committed, self.refused, self.waiting
        resolve = self._resolve
        for key in self.dirty:
            if refused and key in refused and refused[key].retry_at > now:
                continue
            wanted = desired.get(key, MISSING)
            if isinstance(wanted, Missing):
                waiting.pop(key, None)
                if key not in committed:
                    settled.append(key)
                elif not self._ours(key, committed[key]):
                    del committed[key]
                    settled.append(key)
                elif self._removable(key, committed[key]):
                    delta.remove[key] = committed[key]
                continue
            try:
                value = resolve(key, wanted)
            except Waiting as reason:
                waiting[key] = str(reason)
                if not (reason.gone and key in committed and self._ours(key, committed[key])):
                    settled.append(key)
                elif self._removable(key, committed[key]):
                    delta.remove[key] = committed[key]
                continue
            if waiting:
                waiting.pop(key, None)
            if committed and committed.get(key, MISSING) == value:
                settled.append(key)
            else:
                delta.put[key] = value
        if settled:
            self._settle(settled)
        return delta

    def record(self, delta: Delta[K, C], refused: Mapping[K, str], now: float, observed: Set[K] = frozenset()) -> None:
        """Take the outcome of a write: refused keys go into quarantine, the rest is committed.

        ``observed`` are keys that the kernel told of after the write began: what it told counts.
        """
        put, removed = delta.put, list(delta.remove)
        if refused or observed:
            put = {key: value for key, value in put.items() if key not in refused and key not in observed}
            removed = [key for key in removed if key not in refused and key not in observed]
            for key in (*delta.put, *delta.remove):
                if key in refused:
                    self._quarantine(key, refused[key], now)
        self.committed.update(put)
        for key in removed:
            self.committed.pop(key, None)
        for newer in self._readers:
            newer.update(put, removed)
        self._settle((*put, *removed))

    def hold(self, keys: Collection[K], reason: str) -> None:
        """Let keys wait for an event that will ``mark`` them."""
        self.waiting.update(dict.fromkeys(keys, reason))
        self._settle(keys)

    def state_of(self, key: K) -> str:
        """Empty if the kernel holds what is wanted, else why not."""
        if key in self.refused:
            return self.refused[key].reason
        return self.waiting.get(key, "" if key not in self.dirty else "not written yet")

    def next_retry(self) -> float | None:
        """When the first refused key is due again, on the caller's clock."""
        return min((refused.retry_at for refused in self.refused.values()), default=None) if self.refused else None

    def _quarantine(self, key: K, reason: str, now: float) -> None:
        tries = self.refused[key].tries + 1 if key in self.refused else 1
        pause = min(FIRST_RETRY_SECONDS * 2 ** min(tries - 1, 16), LAST_RETRY_SECONDS)
        self.refused[key] = Refused(reason, tries, now + pause)
        self.dirty.add(key)

    def _settle(self, keys: Collection[K]) -> None:
        self.dirty.difference_update(keys)
        if self.refused:
            for key in keys:
                self.refused.pop(key, None)
        # Emptied sets and dictionaries keep the size of their best days, and to walk over them costs that.
        if not self.dirty:
            self.dirty = set()
        if not self.refused:
            self.refused = {}

    def _unindex(self, key: K) -> None:
        if self._interface_of is not None and (interface := self._interface_of(key, self.desired[key])) is not None:
            self._by_interface.discard(interface, key)
