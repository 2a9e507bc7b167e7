"""The transport: one acknowledgement for a batch, every refusal at its message, dumps whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from felixpy.model.net import Family, Net
from felixpy.netlink import nftables as nft
from felixpy.netlink import rtnetlink as rt
from felixpy.netlink import transport
from felixpy.netlink.message import NLMSG_ERROR, Message, Request, attribute, parse_messages
from felixpy.netlink.rtnetlink import KernelRoute, KernelRouteKey
from felixpy.netlink.transport import (
    MAX_DUMP_ATTEMPTS,
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NetlinkError,
    NetlinkSocket,
    Refusal,
)
from tests.kernel import PROTOCOL, RecordingSocket, ip_json, packed, pairs, run

MAIN = 254
NLM_F_DUMP_INTR, NLMSG_DONE = 0x10, 3
SO_RCVBUF = 8
_HEADER = struct.Struct("=IHHII")


@pytest.fixture
def netlink(network: None) -> Iterator[RecordingSocket]:
    one = RecordingSocket()
    yield one
    one.close()


def blackhole(address: str, protocol: int = PROTOCOL) -> Request:
    net = Net.parse(address)
    key = KernelRouteKey(net.family, net, 0 if net.family is Family.V4 else 1024, MAIN)
    return rt.route_request(key, KernelRoute(rt.RTN_BLACKHOLE, 0, protocol=protocol))


def via(gateway: str, destination: str, index: int = 0) -> Request:
    net = Net.parse(destination)
    key = KernelRouteKey(net.family, net, 7, MAIN)
    return rt.route_request(key, KernelRoute(rt.RTN_UNICAST, index, packed(gateway), protocol=PROTOCOL))


def count_routes(family: int = 4) -> int:
    return len(ip_json(f"-{family}", "route", "show", "proto", str(PROTOCOL)))


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(
    network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the socket is given up: the answer may come when nobody expects it any more."""
    monkeypatch.setattr(transport, "TIMEOUT_SECONDS", 1)
    netlink = NetlinkSocket(NETLINK_ROUTE)
    with pytest.raises(TimeoutError, match="the kernel did not answer in 1 s"):
        netlink._receive()
    assert netlink._socket is None
    assert netlink.transact([blackhole("10.0.0.0/24")]) == {}
    netlink.close()


# --- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 500])
def test_one_send_and_one_acknowledgement_for_a_whole_batch(netlink: RecordingSocket, number: int) -> None:
    requests = [blackhole(f"10.{n >> 8}.{n & 255}.0/24") for n in range(number)]
    assert netlink.transact(requests) == {}
    assert (netlink.messages_sent, netlink.sends) == (number, 1)
    assert [(m.type, m.sequence) for m in netlink.received] == [(NLMSG_ERROR, number)]
    assert netlink.bytes_sent == sum(16 + (len(request.payload) + 3 & ~3) for request in requests)
    assert count_routes() == number


def test_nothing_to_send_sends_nothing(netlink: RecordingSocket) -> None:
    assert netlink.transact([]) == {}
    assert (netlink.messages_sent, netlink.sends, netlink.received) == (0, 0, [])


@pytest.mark.parametrize("bad", [{0}, {9}, {0, 9}, {3, 4, 5}, set(range(10))], ids=str)
def test_every_refusal_is_matched_to_its_message(netlink: RecordingSocket, bad: set[int]) -> None:
    pairs("cali1")
    requests = [via("203.0.113.1", f"10.0.{n}.0/24") if n in bad else blackhole(f"10.0.{n}.0/24") for n in range(10)]
    refusals = netlink.transact(requests)
    assert refusals == {n: Refusal(errno.ENETUNREACH, "Nexthop has invalid gateway") for n in bad}
    assert str(refusals[min(bad)]) == "Network is unreachable: Nexthop has invalid gateway"
    assert len(netlink.received) == len(bad | {9})  # one answer for each refusal, and the acknowledgement
    assert count_routes() == 10 - len(bad)


def test_refusals_without_words_have_the_error_number(netlink: RecordingSocket) -> None:
    link = rt.link_settings_request(4242, {"forwarding": 1})
    assert netlink.transact([blackhole("10.0.0.0/24"), link]) == {1: Refusal(errno.ENODEV)}
    assert str(Refusal(errno.ENODEV)) == "No such device"


def test_both_families_share_a_batch_and_fail_apart(netlink: RecordingSocket) -> None:
    pairs("cali1")
    index = ip_json("link", "show", "cali1")[0]["ifindex"]
    requests = [
        blackhole("10.0.1.0/24"),
        via("2001:db8::1", "fd00:1::/64", 4242),
        blackhole("fd00:2::/64"),
        via("203.0.113.1", "10.0.2.0/24", index),
    ]
    assert netlink.transact(requests).keys() == {1, 3}
    assert (count_routes(4), count_routes(6)) == (1, 1)


def test_answers_to_earlier_messages_are_not_taken(netlink: RecordingSocket) -> None:
    """Somebody gave up on an answer that then arrives: the next call must not mistake it for its own."""
    netlink._send([via("203.0.113.1", "10.0.0.0/24")], 0)  # its refusal is never read
    assert netlink.transact([blackhole("10.0.1.0/24")]) == {}
    assert [message.sequence for message in netlink.received] == [1, 2]


def test_sequence_numbers_start_again_before_they_overflow(netlink: RecordingSocket) -> None:
    netlink._sequence = 0xFFFFFFFE
    requests = [via("203.0.113.1", "10.0.0.0/24"), blackhole("10.0.1.0/24"), blackhole("10.0.2.0/24")]
    assert netlink.transact(requests).keys() == {0}
    assert count_routes() == 2


# --- nfnetlink batches ------------------------------------------------------------------------------------------


def test_a_transaction_is_refused_as_a_whole_with_its_culprits(network: None) -> None:
    netlink = RecordingSocket(NETLINK_NETFILTER)
    good = nft.new_table(Family.V4, "good")
    bad = nft.new_chain(Family.V4, "missing", "chain")
    refusals = netlink.transact(nft.batch([good, bad, good, bad]), batch=True)
    assert {index: refusal.errno for index, refusal in refusals.items()} == {2: errno.ENOENT, 4: errno.ENOENT}
    assert run("nft", "list", "tables") == ""
    netlink.received.clear()
    assert netlink.transact(nft.batch([good]), batch=True) == {}
    assert len(netlink.received) == 1
    assert run("nft", "list", "tables") == "table ip good\n"
    netlink.close()


def test_an_error_at_the_begin_of_a_batch_answers_all_of_it(network: None) -> None:
    netlink = RecordingSocket(NETLINK_NETFILTER)
    begin, *rest = nft.batch([nft.new_table(Family.V4, "good")])
    unknown_subsystem = begin._replace(payload=struct.pack(">BBH", 0, 0, 250))
    refusals = netlink.transact([unknown_subsystem, *rest], batch=True)
    assert refusals.keys() == {0}
    assert refusals[0].errno in (errno.EINVAL, errno.EOPNOTSUPP)  # by kernel
    assert netlink.transact(nft.batch([nft.new_table(Family.V4, "good")]), batch=True) == {}
    netlink.close()


# --- dumps ------------------------------------------------------------------------------------------------------


def test_a_dump_of_many_datagrams_is_whole_and_filtered_by_the_kernel(netlink: RecordingSocket) -> None:
    requests = [blackhole(f"10.{n >> 8}.{n & 255}.0/24") for n in range(2000)]
    elsewhere = KernelRouteKey(Family.V4, Net.parse("10.99.0.0/16"), 0, 1000)
    requests.append(rt.route_request(elsewhere, KernelRoute(rt.RTN_BLACKHOLE, 0, protocol=PROTOCOL)))
    assert netlink.transact(requests) == {}
    batches = list(netlink.dump(rt.route_dump_request(Family.V4, MAIN)))
    assert len(batches) > 2
    found = [rt.decode_route(message) for batch in batches for message in batch]
    assert len(found) == 2000
    assert {key.table for key, _ in filter(None, found)} == {MAIN}


def test_a_refused_dump_raises_the_kernels_words(netlink: RecordingSocket) -> None:
    request = rt.route_dump_request(Family.V4, MAIN)
    with pytest.raises(NetlinkError, match="Invalid values in header for FIB dump request") as caught:
        netlink.dump_all(request._replace(payload=request.payload[:1] + b"\x18" + request.payload[2:]))
    assert caught.value.errno == errno.EINVAL
    assert netlink.dump_all(request) == []  # the socket is still good


def _packed(m: Message) -> bytes:
    return _HEADER.pack(16 + len(m.payload), m.type, m.flags, m.sequence, 0) + m.payload


class Kernel:
    """What the kernel rarely says, said by hand: a socket that is opened finds the answers to its requests waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[list[list[Message]]] = []
        self.ends: list[socket.socket] = []
        monkeypatch.setattr(transport, "open_socket", self._open)

    def answer(self, *datagrams: list[Message]) -> None:
        """What the next request will receive."""
        self.answers.append(list(datagrams))

    def heard(self) -> list[Message]:
        """All requests so far."""
        found: list[Message] = []
        for end in self.ends:
            with contextlib.suppress(BlockingIOError):
                while data := end.recv(1 << 16, socket.MSG_DONTWAIT):
                    found += parse_messages(data)
        return found

    def _open(self, protocol: int) -> socket.socket:
        ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(5)
        for number, datagrams in enumerate(self.answers, start=1):
            for datagram in datagrams:
                end.send(b"".join(_packed(m._replace(sequence=number) if m.sequence == 1 else m) for m in datagram))
        self.ends.append(end)
        return ours


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    one = Kernel(monkeypatch)
    yield one
    for end in one.ends:
        end.close()


def item(text: bytes, flags: int = 2, sequence: int = 1) -> Message:
    return Message(rt.RTM_NEWROUTE, flags, sequence, text)


def done(flags: int = 2, sequence: int = 1) -> Message:
    return Message(NLMSG_DONE, flags, sequence, bytes(4))


ANY = Request(rt.RTM_GETROUTE, 0, bytes(12))
Dump = Callable[[NetlinkSocket, Request], list[Message]]


def sliced(netlink: NetlinkSocket, request: Request) -> list[Message]:
    return asyncio.run(netlink.dump_sliced(request))


@pytest.mark.parametrize("dump", [NetlinkSocket.dump_all, sliced])
@pytest.mark.parametrize("place", ["first", "last"])
def test_an_interrupted_dump_is_read_again(kernel: Kernel, place: str, dump: Dump) -> None:
    first, last = (2 | NLM_F_DUMP_INTR, 2) if place == "first" else (2, 2 | NLM_F_DUMP_INTR)
    kernel.answer([item(b"old0", first), item(b"old1")], [done(last)])
    kernel.answer([item(b"new0"), item(b"new1"), done()])
    assert [message.payload for message in dump(NetlinkSocket(NETLINK_ROUTE), ANY)] == [b"new0", b"new1"]
    assert [message.flags & 0x300 for message in kernel.heard()] == [0x300, 0x300]  # NLM_F_DUMP, twice


@pytest.mark.parametrize("dump", [NetlinkSocket.dump_all, sliced])
def test_a_table_that_never_keeps_still_is_said_so(kernel: Kernel, dump: Dump) -> None:
    for _ in range(MAX_DUMP_ATTEMPTS):
        kernel.answer([item(b"torn", 2 | NLM_F_DUMP_INTR), done()])
    with pytest.raises(NetlinkError, match="kept changing") as caught:
        dump(NetlinkSocket(NETLINK_ROUTE), ANY)
    assert caught.value.errno == errno.EINTR
    assert len(kernel.heard()) == MAX_DUMP_ATTEMPTS


def test_a_dump_that_is_given_up_leaves_nothing_for_the_next_one(netlink: RecordingSocket) -> None:
    """One socket serves one dump after the other; one whose rest is still to come is closed."""
    netlink.transact([blackhole(f"10.{n >> 8}.{n & 255}.0/24") for n in range(2000)])
    request = rt.route_dump_request(Family.V4, MAIN)
    netlink.dump_all(request)
    (reader,) = netlink._readers
    first = netlink.dump(request)
    next(first)
    assert len(netlink.dump_all(request)) == 2000, "another one beside it"
    first.close()
    assert reader._socket is None
    assert len(netlink.dump_all(request)) == 2000
    assert len(netlink._readers) == 1


def test_messages_of_other_dumps_are_left_out(kernel: Kernel) -> None:
    kernel.answer([item(b"late", sequence=99), item(b"mine"), done(sequence=99), done()])
    assert [message.payload for message in NetlinkSocket(NETLINK_ROUTE).dump_all(ANY)] == [b"mine"]


def test_words_behind_a_whole_echo_are_found(kernel: Kernel) -> None:
    """A kernel without NETLINK_CAP_ACK repeats the whole message before its words."""
    echo = _HEADER.pack(16 + 12, rt.RTM_NEWROUTE, 5, 1, 0) + bytes(12)
    words = attribute(1, b"too many\0")
    kernel.answer([Message(NLMSG_ERROR, 0x200, 1, struct.pack("=i", -errno.ENOSPC) + echo + words)])
    netlink = NetlinkSocket(NETLINK_ROUTE)
    assert netlink.transact([ANY]) == {0: Refusal(errno.ENOSPC, "too many")}
    netlink.close()


def test_others_run_between_the_datagrams_of_a_sliced_dump(netlink: RecordingSocket) -> None:
    netlink.transact([blackhole(f"10.{n >> 8}.{n & 255}.0/24") for n in range(2000)])
    order: list[str] = []

    async def read() -> None:
        assert len(await netlink.dump_sliced(rt.route_dump_request(Family.V4, MAIN))) == 2001
        order.append("read")

    async def update() -> None:
        assert netlink.transact([blackhole("10.200.0.0/24")]) == {}
        order.append("written")

    async def both() -> None:
        await asyncio.gather(read(), update())

    asyncio.run(both())
    assert order == ["written", "read"]


# --- broken sockets ---------------------------------------------------------------------------------------------


def test_a_broken_socket_is_replaced_by_the_next_call(netlink: RecordingSocket) -> None:
    assert netlink.transact([blackhole("10.0.0.0/24")]) == {}
    assert netlink._socket is not None
    netlink._socket.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        netlink.transact([blackhole("10.0.1.0/24")])
    assert netlink._socket is None
    assert netlink.transact([blackhole("10.0.2.0/24")]) == {}
    assert count_routes() == 2


def test_a_socket_that_lost_answers_is_replaced(netlink: RecordingSocket) -> None:
    """More refusals than fit into the receive buffer: ENOBUFS, and nothing of the old socket is believed."""
    netlink.transact([blackhole("10.255.0.0/24")])
    old = netlink._socket
    assert old is not None
    old.setsockopt(socket.SOL_SOCKET, SO_RCVBUF, 2048)
    refused = [via("203.0.113.1", f"10.0.{n}.0/24") for n in range(200)]
    with pytest.raises(OSError) as caught:
        netlink.transact(refused)
    assert caught.value.errno == errno.ENOBUFS
    assert netlink.transact(refused).keys() == set(range(200))
    assert netlink._socket is not old


def test_a_closed_socket_opens_again_when_it_is_used(netlink: RecordingSocket) -> None:
    netlink.transact([blackhole("10.0.0.0/24")])
    netlink.close()
    netlink.close()
    assert netlink.transact([blackhole("10.0.1.0/24")]) == {}
    assert netlink.messages_sent == 2
