"""A keyed table: differences on dirty keys are all differences; what is refused waits, alone and ever longer."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from felixpy.dataplane.table import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, MISSING, Delta, KeyedTable
from tests.dataplane.plain_table import Plain, Values, adopt, write


@pytest.fixture
def plain() -> Plain:
    return Plain()


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


def test_a_busy_past_costs_nothing_later(plain: Plain) -> None:
    """An emptied set keeps its size, and to look for one dirty key in it would cost as much as at the start."""
    for number in range(5000):
        plain.table.want(f"a{number}", number)
    busy = sys.getsizeof(plain.table.dirty)
    write(plain)
    plain.table.want("a1", 2)
    assert sys.getsizeof(plain.table.dirty) < busy / 100


def test_an_adopted_entry_is_kept_by_the_key_of_who_wants_it(plain: Plain) -> None:
    """Two equal keys of thousands of entries would be a tenth of the agent's memory."""
    adopted, wanted = "".join(("a", "1")), "".join(("a", "1"))
    assert adopted is not wanted
    adopt(plain, {adopted: 10})
    plain.table.want(wanted, 1)
    assert not write(plain)
    assert [key is wanted for key in plain.table.committed] == [True]


def test_what_nobody_wants_is_set_aside_until_it_may_go(plain: Plain) -> None:
    adopt(plain, {"a1": 10, "a2": 20, "a3": 30})
    plain.table.want("a1", 1)
    plain.table.set_aside()
    assert plain.table.dirty == {"a1"}
    assert not write(plain)
    plain.table.want("a2", 2)
    plain.table.set_aside()
    assert not write(plain)
    plain.table.recall()
    assert write(plain) == Delta(remove={"a3": 30})
    plain.table.recall()
    assert plain.table.dirty == set()


def test_what_is_held_is_due_and_not_looked_at_until_it_is_recalled(plain: Plain) -> None:
    adopt(plain, {"a1": 10})
    for key, value in {"a1": 1, "a2": 2, "b1": 3}.items():
        plain.table.want(key, value)
    plain.table.set_aside(lambda key: key.startswith("a"))
    assert write(plain) == Delta(put={"b1": 30})
    assert [plain.table.is_due(key) for key in ("a1", "a2", "b1")] == [True, True, False]
    assert not plain.table.is_written
    plain.table.want("a2", 4)
    plain.table.set_aside(lambda key: key.startswith("a"))
    assert not write(plain)
    plain.table.recall()
    assert write(plain) == Delta(put={"a2": 40})
    assert plain.table.is_written


def test_what_is_set_aside_was_never_right(plain: Plain) -> None:
    adopt(plain, {"a1": 10, "a2": 20})
    plain.table.set_aside()
    plain.table.observe("a1", MISSING, 0.0)
    plain.table.observe("a2", 30, 0.0)
    assert plain.table.drifted == 0
    plain.table.set_aside()
    plain.table.recall()
    assert write(plain) == Delta(remove={"a2": 30})


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
