"""A keyed table beside others who write: notifications, reads that overlap writes, and fights over one key."""

from __future__ import annotations

import asyncio

import pytest

from felixpy.dataplane.table import CONTEST_TOLERATED, CONTEST_WINDOW_SECONDS, LAST_RETRY_SECONDS, MISSING, Delta
from tests.dataplane.plain_table import Plain, adopt, write


@pytest.fixture
def plain() -> Plain:
    return Plain()


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


def test_a_read_knows_less_than_what_was_seen_meanwhile(plain: Plain) -> None:
    """An entry that stands as wanted already is never written, and the dump was taken before anybody wanted it."""
    settled(plain)
    with plain.table.reading() as newer:
        found = dict(plain.table.committed)
        plain.table.want("a2", 2)
        plain.table.learn("a2", 20)
        assert not write(plain)
        asyncio.run(plain.table.adopt(found, newer, 0.0))
    assert not write(plain)
    assert (plain.table.committed, plain.table.drifted) == ({"a1": 10, "a2": 20}, 0)


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
    assert "last removed" in refused.reason
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
