"""A keyed table: differences on dirty keys are all differences; what is refused waits, alone and ever longer."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from felixpy.dataplane.table import (
    CONTEST_TOLERATED,
    CONTEST_WINDOW_SECONDS,
    FIRST_RETRY_SECONDS,
    LAST_RETRY_SECONDS,
    MISSING,
    Delta,
    KeyedTable,
    Waiting,
)

Values = dict[str, int]


class Plain:
    """A table whose kernel value is the wanted one times ten, on interfaces that can be absent."""

    def __init__(self) -> None:
        self.absent: set[str] = set()
        self.held: set[str] = set()  # keys that must not be removed yet
        self.resolved: list[str] = []
        self.table: KeyedTable[str, int, int] = KeyedTable(
            "plain",
            self._resolve,
            removable=lambda key, value: key not in self.held,
            interface_of=lambda key, value: key[0],
        )

    def _resolve(self, key: str, value: int) -> int:
        self.resolved.append(key)
        if key[0] in self.absent:
            raise Waiting(f"interface {key[0]} does not exist")
        return value * 10


@pytest.fixture
def plain() -> Plain:
    return Plain()


def adopt(plain: Plain, found: Values, now: float = 0.0) -> None:
    """Take a dump during which nothing was written."""
    asyncio.run(plain.table.adopt(found, set(), now))


def write(plain: Plain, now: float = 0.0, refused: dict[str, str] | None = None) -> Delta[str, int]:
    delta = plain.table.delta(now)
    plain.table.record(delta, refused or {}, now)
    return delta


# --- differences ------------------------------------------------------------------------------------------------


def test_what_is_wanted_is_put_once(plain: Plain) -> None:
    plain.table.want("a1", 1)
    assert plain.table.state_of("a1") == "not written yet"
    assert write(plain) == Delta(put={"a1": 10})
    assert plain.table.state_of("a1") == ""
    assert not write(plain)
    assert (plain.table.committed, plain.table.dirty) == ({"a1": 10}, set())


def test_a_change_a_return_and_a_removal(plain: Plain) -> None:
    plain.table.want("a1", 1)
    write(plain)
    plain.table.want("a1", 2)
    plain.table.want("a1", 1)  # back before anybody wrote
    assert not write(plain)
    plain.table.want("a1", 2)
    assert write(plain) == Delta(put={"a1": 20})
    plain.table.drop("a1")
    plain.table.drop("never")
    assert write(plain) == Delta(remove={"a1": 20})
    assert plain.table.dirty == set()


def test_only_dirty_keys_are_looked_at(plain: Plain) -> None:
    for number in range(1000):
        plain.table.want(f"a{number}", number)
    write(plain)
    plain.resolved.clear()
    plain.table.want("a7", 8)
    plain.table.mark(["a9"])
    assert write(plain) == Delta(put={"a7": 80})
    assert sorted(plain.resolved) == ["a7", "a9"]


def test_a_dump_shows_every_difference(plain: Plain) -> None:
    plain.table.want("a1", 1)
    plain.table.want("a2", 2)
    write(plain)
    adopt(plain, {"a2": 99, "a3": 30})
    assert write(plain) == Delta(put={"a1": 10, "a2": 20}, remove={"a3": 30})
    adopt(plain, {"a1": 10, "a2": 20})
    assert not write(plain)


# --- interfaces -------------------------------------------------------------------------------------------------


def test_an_entry_waits_for_its_interface_without_being_looked_at(plain: Plain) -> None:
    plain.absent = {"a"}
    plain.table.want("a1", 1)
    plain.table.want("b1", 1)
    assert write(plain) == Delta(put={"b1": 10})
    assert plain.table.state_of("a1") == "interface a does not exist"
    plain.resolved.clear()
    assert not write(plain)
    assert plain.resolved == []
    plain.absent = set()
    plain.table.interface_changed("a", lost=False)
    assert write(plain) == Delta(put={"a1": 10})
    assert plain.table.waiting == {}


def test_a_lost_interface_takes_its_own_entries_only(plain: Plain) -> None:
    for key in ("a1", "a2", "b1"):
        plain.table.want(key, 1)
    write(plain)
    plain.table.interface_changed("a", lost=False)
    assert not write(plain)
    plain.table.interface_changed("a", lost=True)
    assert write(plain) == Delta(put={"a1": 10, "a2": 10})
    plain.table.interface_changed("nobody", lost=True)
    assert not write(plain)


def test_an_entry_that_moves_follows_its_new_interface() -> None:
    table: KeyedTable[str, str, str] = KeyedTable(
        "routes", lambda key, interface: interface, interface_of=lambda key, interface: interface
    )
    table.want("route", "cali1")
    table.record(table.delta(0), {}, 0)
    table.want("route", "cali2")
    table.record(table.delta(0), {}, 0)
    table.interface_changed("cali1", lost=True)
    assert not table.delta(0)
    table.interface_changed("cali2", lost=True)
    assert table.delta(0) == Delta(put={"route": "cali2"})
    table.drop("route")
    table.interface_changed("cali2", lost=True)
    assert not table.delta(0)
    assert table.dirty == set()


def test_what_must_not_go_yet_stays_dirty(plain: Plain) -> None:
    adopt(plain, {"a1": 10})
    plain.held = {"a1"}
    assert not write(plain)
    assert plain.table.dirty == {"a1"}
    plain.held = set()
    assert write(plain) == Delta(remove={"a1": 10})


def test_a_waiting_entry_that_nobody_wants_any_more_is_forgotten(plain: Plain) -> None:
    plain.absent = {"a"}
    plain.table.want("a1", 1)
    write(plain)
    plain.table.drop("a1")
    assert not write(plain)
    assert (plain.table.waiting, plain.table.dirty) == ({}, set())


# --- quarantine -------------------------------------------------------------------------------------------------


def test_a_refused_key_is_tried_again_ever_later(plain: Plain) -> None:
    now, pauses = 100.0, []
    plain.table.want("a1", 1)
    for tries in range(1, 13):
        assert write(plain, now, {"a1": "No space left on device"}) == Delta(put={"a1": 10})
        refused = plain.table.refused["a1"]
        assert (refused.reason, refused.tries) == ("No space left on device", tries)
        assert plain.table.state_of("a1") == "No space left on device"
        assert plain.table.next_retry() == refused.retry_at
        assert not write(plain, refused.retry_at - 0.001)
        pauses.append(refused.retry_at - now)
        now = refused.retry_at
    assert pauses[0] == pytest.approx(FIRST_RETRY_SECONDS)
    assert pauses[1:] == pytest.approx([min(pause * 2, LAST_RETRY_SECONDS) for pause in pauses[:-1]])
    assert pauses[-1] == pytest.approx(LAST_RETRY_SECONDS)
    assert write(plain, now) == Delta(put={"a1": 10})
    assert (plain.table.refused, plain.table.next_retry()) == ({}, None)


def test_a_quarantine_holds_nobody_else_up(plain: Plain) -> None:
    plain.table.want("a1", 1)
    plain.table.want("a2", 2)
    write(plain, 0.0, {"a1": "busy"})
    assert plain.table.committed == {"a2": 20}
    plain.table.want("a3", 3)
    assert write(plain, 0.01) == Delta(put={"a3": 30})


@pytest.mark.parametrize("event", ["want", "drop", "mark", "interface"])
def test_an_event_ends_a_quarantine(plain: Plain, event: str) -> None:
    adopt(plain, {"a1": 5})
    plain.table.want("a1", 1)
    write(plain, 0.0, {"a1": "busy"})
    assert not write(plain, 0.01)
    match event:
        case "want":
            plain.table.want("a1", 7)
            expected = Delta(put={"a1": 70})
        case "drop":
            plain.table.drop("a1")
            expected = Delta[str, int](remove={"a1": 5})
        case "mark":
            plain.table.mark(["a1"])
            expected = Delta(put={"a1": 10})
        case _:
            plain.table.interface_changed("a", lost=False)
            expected = Delta(put={"a1": 10})
    assert write(plain, 0.02) == expected
    assert plain.table.refused == {}


def test_a_refused_removal_keeps_what_the_kernel_holds(plain: Plain) -> None:
    adopt(plain, {"a1": 10})
    write(plain, 0.0, {"a1": "in use"})
    assert plain.table.committed == {"a1": 10}
    assert not write(plain, 0.05)
    assert write(plain, 0.2) == Delta(remove={"a1": 10})
    assert plain.table.next_retry() is None


def test_a_dump_that_shows_a_refused_key_as_wanted_solves_it(plain: Plain) -> None:
    plain.table.want("a1", 1)
    write(plain, 0.0, {"a1": "busy"})
    adopt(plain, {"a1": 10})
    write(plain, 100.0)
    assert (plain.table.refused, plain.table.state_of("a1")) == ({}, "")


# --- notifications and reads ------------------------------------------------------------------------------------


def settled(plain: Plain, key: str = "a1", value: int = 1) -> None:
    """A table that has read the kernel once, and holds one entry as wanted."""
    adopt(plain, {})
    plain.table.want(key, value)
    write(plain)


def test_a_notification_makes_one_key_dirty_if_it_tells_of_a_difference(plain: Plain) -> None:
    settled(plain)
    plain.table.observe("a1", 10, 0.0)
    assert plain.table.dirty == set()
    plain.table.observe("a1", MISSING, 0.0)
    assert write(plain) == Delta(put={"a1": 10})
    plain.table.observe("a2", 20, 0.0)
    assert write(plain) == Delta(remove={"a2": 20})
    assert plain.table.drifted == 2


def test_a_read_knows_less_than_what_was_written_meanwhile(plain: Plain) -> None:
    """The dump was taken before the writes: it must not bring back what they changed."""
    settled(plain)
    settled(plain, "a2", 2)
    with plain.table.reading() as newer:
        found = dict(plain.table.committed)
        plain.table.want("a1", 7)
        plain.table.drop("a2")
        plain.table.want("b1", 3)
        write(plain)
        plain.table.observe("c1", 4, 0.0)
        asyncio.run(plain.table.adopt(found, newer, 0.0))
    assert write(plain) == Delta(remove={"c1": 4})
    assert plain.table.committed == {"a1": 70, "b1": 30}


def test_two_reads_at_a_time_do_not_disturb_each_other(plain: Plain) -> None:
    settled(plain)
    with plain.table.reading() as first:
        with plain.table.reading() as second:
            plain.table.want("a2", 2)
            write(plain)
            asyncio.run(plain.table.adopt({"a1": 10}, second, 0.0))
        plain.table.want("a3", 3)
        write(plain)
        assert first >= {"a2", "a3"}
        assert "a3" not in second  # that read was over
        asyncio.run(plain.table.adopt({"a1": 10}, first, 0.0))
    assert plain.table.dirty == set()


def test_a_read_of_one_interface_judges_only_what_hangs_on_it(plain: Plain) -> None:
    settled(plain)
    settled(plain, "a2", 2)
    settled(plain, "b1", 3)
    plain.table.adopt_interface("a", {"a2": 20, "a3": 30}, set(), 0.0)
    assert write(plain) == Delta(put={"a1": 10}, remove={"a3": 30})


def test_lost_notifications_put_everything_in_doubt(plain: Plain) -> None:
    settled(plain)
    plain.table.doubt()
    assert plain.table.dirty == {"a1"}
    assert not write(plain)


# --- another writer ---------------------------------------------------------------------------------------------


def fight(plain: Plain, times: int, now: float, pause: float = 0.1) -> float:
    """Somebody removes an entry again and again, each time after it was put back."""
    for _ in range(times):
        now += pause
        plain.table.observe("a1", MISSING, now)
        write(plain, now)
    return now


def test_drift_is_repaired_at_once_until_it_is_a_fight(plain: Plain) -> None:
    settled(plain)
    now = fight(plain, CONTEST_TOLERATED, 0.0)
    assert (plain.table.committed, plain.table.refused) == ({"a1": 10}, {})
    plain.table.observe("a1", MISSING, now + 0.1)
    assert not write(plain, now + 0.1)
    refused = plain.table.refused["a1"]
    assert f"{CONTEST_TOLERATED + 1} times" in refused.reason
    assert "removed it" in refused.reason
    assert plain.table.next_retry() == refused.retry_at > now + 0.1
    assert write(plain, refused.retry_at) == Delta(put={"a1": 10})


def test_a_fight_is_backed_off_ever_longer(plain: Plain) -> None:
    settled(plain)
    now, pauses = fight(plain, CONTEST_TOLERATED, 0.0), []
    for _ in range(8):
        now += 0.1
        plain.table.observe("a1", 99, now)
        pauses.append(plain.table.refused["a1"].retry_at - now)
        now = plain.table.refused["a1"].retry_at
        write(plain, now)
    assert pauses == pytest.approx([min(2.0**number, LAST_RETRY_SECONDS) for number in range(8)])


def test_a_fight_over_one_key_is_no_reason_to_wait_with_another(plain: Plain) -> None:
    settled(plain)
    settled(plain, "a2", 2)
    now = fight(plain, CONTEST_TOLERATED + 1, 0.0)
    plain.table.observe("a2", MISSING, now)
    assert write(plain, now) == Delta(put={"a2": 20})


def test_what_happens_rarely_is_no_fight(plain: Plain) -> None:
    settled(plain)
    fight(plain, 5 * CONTEST_TOLERATED, 0.0, pause=CONTEST_WINDOW_SECONDS + 1)
    assert (plain.table.committed, plain.table.refused) == ({"a1": 10}, {})


def test_entries_that_go_with_their_interface_are_no_fight(plain: Plain) -> None:
    settled(plain)
    for number in range(3 * CONTEST_TOLERATED):
        plain.absent = {"a"}
        plain.table.interface_changed("a", lost=True)
        plain.table.observe("a1", MISSING, number / 10)
        write(plain, number / 10)
        plain.absent = set()
        plain.table.interface_changed("a", lost=False)
        assert write(plain, number / 10) == Delta(put={"a1": 10})
    assert (plain.table.contests, plain.table.drifted) == ({}, 0)


# --- property ---------------------------------------------------------------------------------------------------

KEYS = st.sampled_from([f"{interface}{number}" for interface in "abc" for number in range(3)])


@dataclasses.dataclass
class Kernel:
    """What a kernel would hold: writes are kept unless refused; a lost interface takes its entries."""

    entries: Values = dataclasses.field(default_factory=dict)

    def take(self, delta: Delta[str, int], refused: dict[str, str]) -> None:
        self.entries.update({key: value for key, value in delta.put.items() if key not in refused})
        for key in delta.remove:
            if key not in refused:
                del self.entries[key]


class Histories(RuleBasedStateMachine):
    """Any history; after each step the difference on dirty keys is the difference of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.kernel, self.now = Plain(), Kernel(), 0.0

    @initialize(found=st.dictionaries(KEYS, st.integers(0, 30)))
    def start(self, found: Values) -> None:
        self.kernel.entries = dict(found)
        adopt(self.plain, dict(found))

    @rule(key=KEYS, value=st.integers(0, 3))
    def want(self, key: str, value: int) -> None:
        self.plain.table.want(key, value)

    @rule(key=KEYS)
    def drop(self, key: str) -> None:
        self.plain.table.drop(key)

    @rule(interface=st.sampled_from("abc"), present=st.booleans())
    def flap(self, interface: str, present: bool) -> None:
        gone = interface not in self.plain.absent and not present
        if present:
            self.plain.absent.discard(interface)
        else:
            self.plain.absent.add(interface)
        if gone:
            wanted = self.plain.table.desired
            self.kernel.entries = {k: v for k, v in self.kernel.entries.items() if k[0] != interface or k not in wanted}
        self.plain.table.interface_changed(interface, lost=gone)

    @rule(drift=st.dictionaries(KEYS, st.integers(0, 30), max_size=3))
    def resync(self, drift: Values) -> None:
        self.kernel.entries.update(drift)
        adopt(self.plain, dict(self.kernel.entries))

    @rule(refuse=st.sets(KEYS, max_size=3), pause=st.floats(0, 40))
    def apply(self, refuse: set[str], pause: float) -> None:
        self.now += pause
        delta = self.plain.table.delta(self.now)
        refused = {key: "busy" for key in refuse if key in delta.put or key in delta.remove}
        self.kernel.take(delta, refused)
        self.plain.table.record(delta, refused, self.now)

    @invariant()
    def delta_on_dirty_keys_is_the_whole_difference(self) -> None:
        table = self.plain.table
        assert table.committed == self.kernel.entries
        present = {key: value * 10 for key, value in table.desired.items() if key[0] not in self.plain.absent}
        held_back = {key for key, refused in table.refused.items() if refused.retry_at > self.now}
        put = {k: v for k, v in present.items() if self.kernel.entries.get(k) != v and k not in held_back}
        gone = {k: v for k, v in self.kernel.entries.items() if k not in table.desired and k not in held_back}
        assert table.delta(self.now) == Delta(put, gone)


def test_the_delta_on_dirty_keys_equals_a_full_comparison() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Histories, settings=settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
    )


@given(st.dictionaries(KEYS, st.integers(0, 3)), st.dictionaries(KEYS, st.integers(0, 30)))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_one_apply_makes_any_kernel_equal_to_what_is_wanted(wanted: Values, found: Values) -> None:
    plain = Plain()
    adopt(plain, dict(found))
    for key, value in wanted.items():
        plain.table.want(key, value)
    write(plain)
    assert plain.table.committed == {key: value * 10 for key, value in wanted.items()}
    assert not write(plain)
