"""What the second observer saw, in words, with the time of each.

    +route 10.64.100.1   -route …   +route 10.64.0.64/26 via 172.31.0.2   +neigh …   -neigh …
    +elem from-workload 10.64.100.1   +member fpy4-from-workload 10.64.100.1   +rule felixpy forward   gen

``+neigh`` is a permanent entry. ``gen`` is the end of an nf_tables transaction. An interval counts as an element at its
first address. Invariant: a word's time is the first since ``clear``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bench.observer import HEADER, IPSET, LOST
from felixpy.demo.agent import environment
from felixpy.demo.host import Host, LabError
from felixpy.model.net import Net, format_address
from felixpy.netlink import nftables, rtnetlink
from felixpy.netlink.message import Message, parse_messages
from felixpy.netlink.transport import NETLINK_ROUTE

_RULES = {nftables.NEWRULE: "+rule", nftables.DELRULE: "-rule"}
_ELEMENTS = {nftables.NEWSETELEM: "+elem", nftables.DELSETELEM: "-elem"}
_MAIN_TABLE = 254


class Record(NamedTuple):
    """One datagram: monotonic nanoseconds, protocol, bytes."""

    at: int
    kind: int
    data: bytes


def words(record: Record) -> Iterator[str]:
    """What a datagram tells."""
    if record.kind == IPSET:
        yield record.data.decode()
        return
    for message in parse_messages(record.data):
        if record.kind == NETLINK_ROUTE:
            yield from _routing(message)
        else:
            yield from _filter(message)


def _net(net: Net) -> str:
    return format_address(net.packed) if net.is_host else str(net)


def _routing(message: Message) -> Iterator[str]:
    if message.type in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE):
        sign = "+" if message.type == rtnetlink.RTM_NEWROUTE else "-"
        found = rtnetlink.decode_route(message)
        if found and found[0].table == _MAIN_TABLE:
            key, route = found
            yield f"{sign}route {_net(key.destination)}"
            if route.gateway:
                yield f"{sign}route {_net(key.destination)} via {format_address(route.gateway)}"
    elif message.type == rtnetlink.RTM_NEWNEIGH:
        neighbour = rtnetlink.decode_neighbour(message)
        if neighbour:
            yield f"+neigh {format_address(neighbour.address)}"
    elif message.type == rtnetlink.RTM_DELNEIGH and (gone := rtnetlink.decode_neighbour_key(message)):
        yield f"-neigh {format_address(gone[1])}"


def _filter(message: Message) -> Iterator[str]:
    if message.type >> 8 != nftables.NFNL_SUBSYS_NFTABLES:
        return
    command = message.type & 0xFF
    if command in _ELEMENTS:
        size = 4 if message.payload[0] == 2 else 16  # NFPROTO_IPV4: first field of struct nfgenmsg
        for element in nftables.decode_elements(message):
            if not element.interval_end and len(element.key) >= size:
                yield f"{_ELEMENTS[command]} {nftables.set_of(message)} {format_address(element.key[:size])}"
    elif command in _RULES:
        table, chain = nftables.table_of(message, command), nftables.chain_of(message, command)
        yield f"{_RULES[command]} {table} {chain}"
    elif command == nftables.NEWGEN:
        yield "gen"


class Observer:
    """The observer of one node's kernel. Start with ``Observer.start``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._seen: dict[str, int] = {}
        self._raw: list[Record] = []
        self._deferred = False
        self._news = asyncio.Event()
        self._ready = asyncio.Event()
        self.last_at = 0
        self.count = 0
        self.lost = 0
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, host: Host) -> Observer:
        """Start it in a host's namespaces.

        Raises:
            LabError: it ended at once.
        """
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *host.enter(sys.executable, "-m", "bench.observer"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment({}),
            limit=1 << 24,
        )
        observer = cls(process)
        try:
            await asyncio.wait_for(observer._ready.wait(), 20)
        except TimeoutError:
            await observer.close()
            raise LabError(f"the observer in {host.name} did not start; run it alone to see why") from None
        return observer

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        assert self._process.stdout
        while True:
            try:
                at, kind, length = HEADER.unpack(await self._process.stdout.readexactly(HEADER.size))
                data = await self._process.stdout.readexactly(length)
            except asyncio.IncompleteReadError:
                return
            self._take(Record(at, kind, data))

    def _take(self, record: Record) -> None:
        self._ready.set()
        self.count += 1
        self.last_at = record.at
        if record.kind == LOST:
            self.lost += 1
        elif self._deferred:
            self._raw.append(record)
        else:
            self._note(record)
        self._news.set()

    def _note(self, record: Record) -> None:
        for word in words(record):
            self._seen.setdefault(word, record.at)

    def clear(self, *, deferred: bool = False) -> None:
        """Forget what was seen. ``deferred``: read no datagram before ``settle``, to leave the processor to others."""
        self._seen.clear()
        self._raw.clear()
        self._deferred = deferred
        self.count = self.lost = 0

    def settle(self) -> None:
        """Read what was deferred."""
        for record in self._raw:
            self._note(record)
        self._raw.clear()
        self._deferred = False

    async def expect_members(self, members: Iterable[tuple[str, str, str]], *, present: bool) -> None:
        """Watch IP set members (set, address, interface) by asking the kernel."""
        assert self._process.stdin
        line = json.dumps({"members": list(members), "present": present})
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    def at(self, word: str) -> int | None:
        """When a word was first seen, or None."""
        return self._seen.get(word)

    @property
    def seen(self) -> dict[str, int]:
        return self._seen

    async def wait(self, expected: Iterable[str], timeout_s: float = 10.0) -> int:
        """Wait until every word was seen; returns when the last of them was.

        Raises:
            TimeoutError: some never came; the message names one.
        """
        missing = set(expected)
        last = 0
        deadline = time.monotonic() + timeout_s
        while True:
            for word in [word for word in missing if word in self._seen]:
                last = max(last, self._seen[word])
                missing.discard(word)
            if not missing:
                return last
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                lost = "; notifications were lost" if self.lost else ""
                raise TimeoutError(
                    f"the kernel never told of {min(missing)!r} ({len(missing)} missing{lost})"
                ) from None

    async def quiet(self, seconds: float = 0.02) -> None:
        """Until nothing has been told for a while."""
        while True:
            count = self.count
            await asyncio.sleep(seconds)
            if count == self.count:
                return
