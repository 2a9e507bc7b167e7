"""Differences of several routing tables of the kernel, written in common batches over one socket.

Entries go in the order of the tables, so that what one needs is there before it. A refusal is its key's own.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

from felixpy.dataplane.report import ApplyReport
from felixpy.dataplane.table import Delta, KeyedTable
from felixpy.netlink.message import Request
from felixpy.netlink.transport import NetlinkSocket

REQUESTS_PER_SEND = 500
GONE = {errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL}
"""Removing what is not there any more is a success."""


class Written(NamedTuple):
    """A table that goes into the batches: how an entry is made or replaced, and removed.

    ``only_new``: until the snapshot is complete what stands is left as it is, because it follows from several objects.
    ``when_complete``: until then nothing is made, because it leads past what may still come.
    """

    table: KeyedTable[Any, Any, Any]
    put: Callable[[Any, Any], Request]
    remove: Callable[[Any, Any], Request]
    only_new: bool = False
    when_complete: bool = False


async def write_deltas(
    socket: NetlinkSocket,
    deltas: Sequence[tuple[Written, Delta[Any, Any]]],
    now: float,
    report: ApplyReport,
    *,
    removals: bool,
) -> list[Any]:
    """Write what is to be put, or to be removed, and take the outcome into the tables.

    Returns the keys that the kernel refused because something stands there already.
    """
    requests: list[Request] = []
    places: list[tuple[int, Any]] = []
    for at, (one, delta) in enumerate(deltas):
        request = one.remove if removals else one.put
        for key, value in (delta.remove if removals else delta.put).items():
            requests.append(request(key, value))
            places.append((at, key))
    if not requests:
        return []
    exists: set[int] = set()
    # In a single send nobody else runs meanwhile.
    readings = [one.table.reading() for one, _ in deltas] if len(requests) > REQUESTS_PER_SEND else []
    told: list[Set[Any]] = [reading.begin() for reading in readings] or [frozenset()] * len(deltas)
    try:
        refusals = await _send(socket, requests, report, exists, gone_is_success=removals)
    finally:
        for reading in readings:
            reading.end()
    refused: list[dict[Any, str]] = [{} for _ in deltas]
    for index, words in refusals.items():
        at, key = places[index]
        refused[at][key] = words
    for (one, delta), of_it, meanwhile in zip(deltas, refused, told, strict=True):
        one.table.record(delta, of_it, now, meanwhile)
    report.written += len(requests) - len(refusals)
    return [places[index][1] for index in exists]


async def _send(
    socket: NetlinkSocket,
    requests: list[Request],
    report: ApplyReport,
    exists: set[int],
    *,
    gone_is_success: bool = False,
) -> dict[int, str]:
    """Send in chunks and let others run in between. Returns the kernel's words by request.

    ``exists`` takes the requests that the kernel refused because something stands there already. A socket
    that breaks is the failure of its chunk only; to write that again does no harm.
    """
    refused: dict[int, str] = {}
    for start in range(0, len(requests), REQUESTS_PER_SEND):
        if start:
            await asyncio.sleep(0)
        chunk = requests[start : start + REQUESTS_PER_SEND]
        try:
            refusals = socket.transact(chunk)
        except OSError as error:
            report.unknown = True
            refused.update(dict.fromkeys(range(start, start + len(chunk)), str(error)))
            continue
        for index, refusal in refusals.items():
            if not (gone_is_success and refusal.errno in GONE):
                refused[start + index] = str(refusal)
            if refusal.errno == errno.EEXIST:
                exists.add(start + index)
    return refused
