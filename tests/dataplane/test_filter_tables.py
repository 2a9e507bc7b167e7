"""Sets that vanish without a word, as IP sets do, while the agent believes in them."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from felixpy.calc.rule import ChainKey
from felixpy.config import EndpointToHostAction
from felixpy.dataplane.fake import FakePacketFilter
from felixpy.dataplane.filter_tables import FilterTables
from felixpy.dataplane.release import AddressRelease
from felixpy.dataplane.report import ApplyReport
from felixpy.model.net import Family

from .rule_settings import default_rules


async def refused_and_tried_again() -> tuple[FilterTables, FakePacketFilter]:
    packet_filter = FakePacketFilter(Family.V4)
    packet_filter.refuses = lambda key: (
        "Set does not exist" if isinstance(key, ChainKey) and not packet_filter.containers else ""
    )
    tables = FilterTables(packet_filter, AddressRelease())
    rules = default_rules(Family.V4)
    tables.want_rules(rules)
    await tables.add(0, ApplyReport(), complete=True)
    assert tables.idle

    await packet_filter.remove_all()  # others did
    tables.want_rules(replace(rules, endpoint_to_host=EndpointToHostAction.ACCEPT))
    await tables.add(1, ApplyReport(), complete=True)
    assert tables.chains.refused
    due = tables.chains.next_retry()
    assert due is not None
    await tables.add(due, ApplyReport(), complete=True)
    return tables, packet_filter


def test_rules_that_are_refused_are_tried_again_after_a_look_at_what_they_need() -> None:
    tables, packet_filter = asyncio.run(refused_and_tried_again())
    assert packet_filter.containers
    assert packet_filter.chains == tables.chains.desired
    assert tables.idle
