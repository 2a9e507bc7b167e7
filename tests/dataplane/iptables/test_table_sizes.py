"""The kernel tells nothing of legacy tables: that one was changed is seen by its size, without reading it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from felixpy.dataplane.iptables import LegacyFilter, legacy
from felixpy.dataplane.iptables.legacy import legacy_tables_of
from felixpy.dataplane.iptables.table_sizes import TableSizes
from felixpy.dataplane.packet_filter import FilterChange, Part
from felixpy.model.net import FAMILIES, Family
from tests.dataplane.iptables.conftest import output
from tests.dataplane.iptables.programmed import program

pytestmark = pytest.mark.parametrize("family", FAMILIES, ids=str)
TABLES = 3
"""raw, filter and nat: without classes of policy there is nothing to do in mangle."""


@pytest.fixture
def one(network: None, family: Family, monkeypatch: pytest.MonkeyPatch) -> Iterator[LegacyFilter]:
    """A filter that may look again at once after each reading."""
    monkeypatch.setattr(legacy, "PAUSE_PER_READING", 0.0)
    made = LegacyFilter(family)
    yield made
    made.close()


def tool_of(family: Family) -> str:
    return f"{'iptables' if family is Family.V4 else 'ip6tables'}-legacy"


async def read_after_write(one: LegacyFilter) -> None:
    await program(one, 1)
    assert one.looks_changed(), "our own write is read once"
    await one.read(Part.RULES)


CHANGES = {
    "chain flushed": "-t raw -F fpy-from-workload",
    "jump deleted": "-D FORWARD -m comment --comment felixpy -j fpy-FORWARD",
    "rule added": "-I fpy-FORWARD -j ACCEPT",
    "rule of another size": "-t nat -R fpy-nat-outgoing 1 -j RETURN",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_somebody_changes_is_seen_once_without_a_reading(one: LegacyFilter, family: Family, change: str) -> None:
    async def scenario() -> None:
        await read_after_write(one)
        reads, asks = one.counts().reads, one.sizes.asks
        assert [one.looks_changed() for _ in range(10)] == [False] * 10
        assert one.sizes.asks == asks + 10 * TABLES
        output(tool_of(family), *change.split())
        assert [one.looks_changed() for _ in range(3)] == [True, False, False]
        assert (one.sizes.asks, one.counts().reads) == (asks + 11 * TABLES, reads), "told once, and nothing was read"
        await one.read(Part.RULES)
        assert not one.looks_changed()

    asyncio.run(scenario())


def test_no_table_comes_into_being_by_a_look(one: LegacyFilter, family: Family) -> None:
    async def scenario() -> None:
        await one.read()
        assert not one.looks_changed()
        output(tool_of(family), "-A", "FORWARD", "-j", "ACCEPT")
        await one.read()
        asks = one.sizes.asks
        assert not one.looks_changed()
        assert one.sizes.asks == asks, "the table holds nothing of ours"

    asyncio.run(scenario())
    assert legacy_tables_of(family) == {"filter"}


def test_the_size_is_the_kernel_s(one: LegacyFilter, family: Family) -> None:
    output(tool_of(family), "-N", "mine")
    sizes = TableSizes(family)
    try:
        before = sizes.ask(["filter"])["filter"]
        output(tool_of(family), "-A", "mine", "-j", "RETURN")
        after = sizes.ask(["filter"])["filter"]
        output(tool_of(family), "-F", "mine")
        assert sizes.ask(["filter"]) == {"filter": before}
    finally:
        sizes.close()
    assert before.entries == 3 + 2 + 1, "three policies, head and end of a chain, the end of the table"
    assert after.entries == before.entries + 1
    assert after.bytes > before.bytes


def test_a_change_while_the_rules_are_read_is_seen(
    one: LegacyFilter, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        await read_after_write(one)
        save = one._save

        async def save_and_flush():  # type: ignore[no-untyped-def]
            found = await save()
            output(tool_of(family), "-F", "fpy-forward-to")
            return found

        with monkeypatch.context() as patched:
            patched.setattr(one, "_save", save_and_flush)
            await one.read(Part.RULES)
        assert one.looks_changed()
        await one.read(Part.RULES)
        assert not one.looks_changed()

    asyncio.run(scenario())


def test_a_write_while_the_rules_are_read_is_read_too(
    one: LegacyFilter, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        await read_after_write(one)
        state = await one.read(Part.RULES)
        save, key = one._save, next(iter(state.chains))

        async def save_and_write():  # type: ignore[no-untyped-def]
            found = await save()
            with monkeypatch.context() as patched:
                patched.setattr(one, "_save", save)
                assert await one.write(FilterChange(chains={key: state.chains[key]})) == {}
            return found

        with monkeypatch.context() as patched:
            patched.setattr(one, "_save", save_and_write)
            await one.read(Part.RULES)
        assert one.looks_changed(), "the sizes are the same as before"

    asyncio.run(scenario())


def test_who_writes_without_end_costs_a_tenth(
    one: LegacyFilter, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        await read_after_write(one)
        monkeypatch.setattr(legacy, "PAUSE_PER_READING", 1e9)
        await one.read(Part.RULES)
        asks = one.sizes.asks
        output(tool_of(family), "-F", "fpy-forward-to")
        assert not one.looks_changed()
        assert one.sizes.asks == asks

    asyncio.run(scenario())
