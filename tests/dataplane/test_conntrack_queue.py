"""The queue of released addresses: many in one pass, what waits for whom, failures and the end."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from felixpy.dataplane.conntrack import ConntrackCleaner
from felixpy.model.net import FAMILIES, Family, parse_address
from felixpy.netlink.message import nested
from felixpy.netlink.transport import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from tests.dataplane.conntrack_router import PATIENCE_S, packed, run, until, watched
from tests.netlink.conntrack_lab import CountingSocket, OtherSubsystem, create, create_all, listed, numbered, without
from tests.netns import enter_new_network, enter_private_namespaces

UNUSED_PROTOCOL = 31
STATISTICS = 5  # IPCTNL_MSG_CT_GET_STATS


@pytest.fixture(scope="module")
def private_namespaces() -> None:
    enter_private_namespaces()


@pytest.fixture
def network(private_namespaces: None) -> None:
    enter_new_network()


def test_many_addresses_go_in_one_pass(network: None) -> None:
    """100 workloads of both families with 20 entries each, among 4,000 of others."""

    async def scenario() -> None:
        gone = [numbered(family, number) for family in FAMILIES for number in range(1, 101)]
        for family in FAMILIES:
            outside = numbered(family, 0xFF00)
            numbers = (number for number in range(1, 201) for _ in range(20))
            create_all(
                create(numbered(family, number), outside, ports=(1 + index, 53)) for index, number in enumerate(numbers)
            )
        before = listed()
        async with watched() as one:
            for address in gone:
                one.release(address)
            await one.freed(*gone)
            assert isinstance(one.socket, CountingSocket)
            assert (one.cleaner.passes, one.socket.table_reads()) == (1, 1)
            assert sum(one.socket.deletes()) == 4000
            assert max(one.socket.deletes()) > 50
            assert one.released == [packed(*gone)]
        assert len(before) == 8000
        assert listed() == without(before, *gone)
        assert len(listed()) == 4000

    run(scenario())


def test_the_event_loop_runs_on_during_a_pass(network: None) -> None:
    async def scenario() -> None:
        create_all(create(numbered(Family.V4, number), "10.2.0.1") for number in range(1, 20001))
        async with watched() as one:
            one.release(numbered(Family.V4, 7))
            turns = 0
            while one.cleaner.is_releasing(parse_address(numbered(Family.V4, 7))):
                await asyncio.sleep(0.0005)
                turns += 1
            assert isinstance(one.socket, CountingSocket)
            assert (one.cleaner.passes, one.socket.deletes()) == (1, [1])
            assert turns > 10

    run(scenario())


# --- waiting, failing, stopping --------------------------------------------------------------------------------------


class Gate(CountingSocket):
    """A socket whose dumps wait for ``open``, like those of a kernel that is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.open = threading.Event()

    def dump(self, request: Any) -> Any:
        is_table = request.type & 0xFF == 1
        for messages in super().dump(request):
            if is_table:
                self.reached.set()
                assert self.open.wait(PATIENCE_S)
            yield messages


def test_an_address_that_comes_during_a_pass_goes_into_the_next(network: None) -> None:
    async def scenario() -> None:
        one_address, other, free = (numbered(Family.V4, number) for number in (1, 2, 3))
        create_all(create(address, "10.2.0.1") for address in (one_address, other, free))
        gate = Gate()
        async with watched(gate) as one:
            one.release(one_address)
            await until(gate.reached.is_set)
            one.release(other, one_address)  # the pass that runs has read the table already
            states = [one.cleaner.is_releasing(parse_address(address)) for address in (one_address, other, free)]
            assert states == [True, True, False]
            assert one.released == []
            create_all([create(one_address, "10.2.0.2")])
            gate.open.set()
            await one.freed(one_address, other)
            assert one.released == [packed(one_address, other)]
            assert (one.cleaner.passes, gate.table_reads()) == (2, 2)
        assert listed() == without(listed(), one_address, other)
        assert len(listed()) == 1

    run(scenario())


class FailsFirst(CountingSocket):
    """A socket on which the first ``times`` reads of the table fail half-way."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def dump(self, request: Any) -> Any:
        for messages in super().dump(request):
            if request.type & 0xFF == 1 and self.times > 0:
                self.times -= 1
                raise NetlinkError(errno.ENOMEM, "Cannot allocate memory")
            yield messages


def test_a_failure_is_said_once_and_tried_again(network: None) -> None:
    async def scenario() -> None:
        address = numbered(Family.V6, 1)
        create_all([create(address, numbered(Family.V6, 2)), create(numbered(Family.V6, 3), numbered(Family.V6, 2))])
        socket = FailsFirst(3)
        async with watched(socket) as one:
            one.release(address)
            assert one.cleaner.reason(parse_address(address)) == ""
            await until(lambda: socket.times == 0)
            await until(lambda: one.warnings)
            assert one.cleaner.reason(parse_address(address)) == "Cannot allocate memory"
            assert len(listed()) == 2
            await one.freed(address)
            assert (one.cleaner.passes, socket.table_reads()) == (4, 4)
            assert one.released == [packed(address)]
            (warning,) = one.warnings
            assert warning.startswith(f"The kernel does not delete the conntrack entries of {address}: Cannot allocate")
            assert one.cleaner.reason(parse_address(address)) == ""
        assert len(listed()) == 1

    run(scenario())


class RefusedDeletes(CountingSocket):
    """Spoils the deletes of entries with one address, so that the kernel refuses them and no others.

    Kernels refuse so what a flowtable forwards past the rules (EBUSY).
    """

    def __init__(self, address: bytes) -> None:
        super().__init__()
        self.address: bytes | None = address

    def transact(self, requests: Any, *, batch: bool = False) -> Any:
        spoilt = [
            request._replace(payload=request.payload[:4] + nested(1, b""))
            if self.address and self.address in request.payload
            else request
            for request in requests
        ]
        return super().transact(spoilt, batch=batch)


def test_only_an_address_that_the_kernel_refuses_waits(network: None) -> None:
    async def scenario() -> None:
        bad, good, new = (numbered(Family.V6, number) for number in (1, 2, 3))
        create_all(create(address, numbered(Family.V6, 4)) for address in (bad, good, new))
        socket = RefusedDeletes(parse_address(bad))
        async with watched(socket) as one:
            one.release(bad, good)
            await one.freed(good)
            assert one.released == [packed(good)]
            assert one.cleaner.reason(parse_address(bad)) == "Invalid argument"
            one.release(new)
            await one.freed(new)
            assert one.released == [packed(good), packed(new)]
            assert one.cleaner.is_releasing(parse_address(bad))
            assert {entry.addresses[0] for entry in listed()} == {bad}
            socket.address = None
            await one.freed(bad)
            assert one.released == [packed(good), packed(new), packed(bad)]
            assert listed() == set()
            (warning,) = one.warnings
            assert f"{bad}: Invalid argument" in warning

    run(scenario())


@pytest.fixture(params=[OtherSubsystem, lambda: NetlinkSocket(UNUSED_PROTOCOL)], ids=["subsystem", "protocol"])
def no_ctnetlink(request: pytest.FixtureRequest, network: None) -> Iterator[NetlinkSocket]:
    """What a kernel answers that lacks ctnetlink, or nfnetlink as a whole."""
    socket = request.param()
    yield socket
    socket.close()


def test_without_ctnetlink_nobody_waits(no_ctnetlink: NetlinkSocket) -> None:
    async def scenario() -> None:
        async with watched(no_ctnetlink) as one:
            for number in (1, 2):
                one.release(numbered(Family.V4, number))
                await one.freed(numbered(Family.V4, number))
            assert one.released == [packed(numbered(Family.V4, number)) for number in (1, 2)]
            (warning,) = one.warnings
            assert "nf_conntrack_netlink" in warning

    run(scenario())


def test_close_stops_in_the_middle(network: None) -> None:
    async def scenario() -> None:
        create_all(create("10.1.0.1", "10.2.0.1", ports=(port, 53)) for port in range(1, 3001))
        gate = Gate()
        async with watched(gate) as one:
            one.release("10.1.0.1")
            await until(gate.reached.is_set)
            one.cleaner.close()
            gate.open.set()
            await until(lambda: not any(thread.name.startswith("conntrack") for thread in threading.enumerate()))
            assert (one.released, one.warnings, gate.deletes(), gate.table_reads()) == ([], [], [], 1)
        assert len(listed()) == 3000

    run(scenario())


def test_nothing_to_release_asks_nothing(network: None) -> None:
    async def scenario() -> None:
        async with watched() as one:
            one.release()
            await asyncio.sleep(0)
            assert isinstance(one.socket, CountingSocket)
            assert one.socket.asked == []
            one.release("10.1.0.1")
            await one.freed("10.1.0.1")
            assert (one.released, one.socket.asked) == ([packed("10.1.0.1")], [(STATISTICS, 1)])

    run(scenario())


def test_a_bug_is_not_silent(network: None) -> None:
    """What goes wrong in the caller's code reaches the event loop, and later addresses are released all the same."""

    async def scenario() -> None:
        seen: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context.get("exception")))

        def broken(addresses: frozenset[bytes]) -> None:
            raise KeyError(addresses)

        cleaner = ConntrackCleaner(NetlinkSocket(NETLINK_NETFILTER), broken, seen.append)
        for number in (1, 2):
            address = packed(numbered(Family.V4, number))
            cleaner.release(address)
            await until(lambda number=number: len(seen) == number)
            assert isinstance(seen[-1], KeyError) and seen[-1].args == (address,)
        cleaner.close()

    run(scenario())
