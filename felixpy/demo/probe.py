"""One process per lab namespace: makes the namespace, holds it open, and sends and answers real packets in it.

Reads one JSON request per line on standard input and writes one JSON answer per line on standard output; ends with
its standard input, and the namespace with it. Responders answer with the peer address that they saw: that is how
NAT is observed. Runs as a plain file (``python -I -S probe.py``), so it imports the standard library only and starts
in a few milliseconds. Must never run without the unshare: everything it changes belongs to its own namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
ETH_P_ALL = 0x0003
IPV6_HDRINCL = 36  # linux/in6.h; not in the socket module
ICMP_ECHO, ICMPV6_ECHO = (8, 0), (128, 129)
PAYLOAD = b"felixpy lab"
RETRY_S = 0.15
LAST_ANSWER_S = 2.0

SYSCTLS = {
    # A new namespace copies IPv4 values from the machine, so each one that matters here is set.
    "ipv4/ip_forward": "0",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/proxy_arp": "0",
    "ipv4/conf/default/proxy_arp": "0",
    "ipv4/conf/all/forwarding": "0",
    "ipv4/conf/default/forwarding": "0",
    "ipv6/conf/all/forwarding": "0",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/router_solicitations": "0",
}

Answer = dict[str, Any]


def enter_new_namespaces() -> None:
    """Move this process into new network and mount namespaces with a private /run (xtables.lock) and /sys."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    call("unshare", libc.unshare(CLONE_NEWNET | CLONE_NEWNS))
    call("mount / private", libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
    call("mount /run", libc.mount(b"tmpfs", b"/run", b"tmpfs", ctypes.c_ulong(0), b"mode=755"))
    call("mount /sys", libc.mount(b"sysfs", b"/sys", b"sysfs", ctypes.c_ulong(0), None))
    for name, value in SYSCTLS.items():
        with open(f"/proc/sys/net/{name}", "w") as file:  # noqa: PTH123 - pathlib would double the start time
            file.write(value)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def new_socket(address: str, kind: int, source: str | None, source_port: int = 0) -> socket.socket:
    made = socket.socket(family_of(address), kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if source or source_port:
        made.bind((source or ("::" if ":" in address else "0.0.0.0"), source_port))
    return made


def peer_as_bytes(peer: tuple[Any, ...]) -> bytes:
    return json.dumps({"address": peer[0], "port": peer[1]}).encode()


# --- responders --------------------------------------------------------------------------------------------------


def listen(address: str, port: int) -> Answer:
    """Answer on TCP and UDP. UDP is bound to the address: a wildcard socket may answer from another one."""
    tcp = _bound_soon(address, socket.SOCK_STREAM, port)
    tcp.listen(64)
    udp = _bound_soon(address, socket.SOCK_DGRAM, port)
    threading.Thread(target=_accept, args=(tcp,), daemon=True).start()
    threading.Thread(target=_answer_datagrams, args=(udp,), daemon=True).start()
    return {}


def _bound_soon(address: str, kind: int, port: int) -> socket.socket:
    """A new IPv6 address is tentative for a moment even without duplicate address detection."""
    deadline = time.monotonic() + 1
    while True:
        try:
            return new_socket(address, kind, address, port)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _accept(listener: socket.socket) -> None:
    while True:
        connection, peer = listener.accept()
        threading.Thread(target=_answer_stream, args=(connection, peer), daemon=True).start()


def _answer_stream(connection: socket.socket, peer: tuple[Any, ...]) -> None:
    with connection:
        try:
            while connection.recv(64):
                connection.sendall(peer_as_bytes(peer))
        except OSError:  # the peer is gone
            return


def _answer_datagrams(udp: socket.socket) -> None:
    while True:
        try:
            _, peer = udp.recvfrom(2048)
            udp.sendto(peer_as_bytes(peer), peer)
        except OSError:  # no route back, or an ICMP error for an earlier answer
            continue


# --- requests ----------------------------------------------------------------------------------------------------


def tcp(address: str, port: int, timeout: float, source: str | None = None, source_port: int = 0) -> Answer:
    """Connect, ask once; the answer is the peer address that the responder saw."""
    with new_socket(address, socket.SOCK_STREAM, source, source_port) as connection:
        connection.settimeout(timeout)
        connection.connect((address, port))
        return _ask_stream(connection)


def _ask_stream(connection: socket.socket) -> Answer:
    connection.sendall(b"?")
    data = connection.recv(256)
    if not data:
        raise ConnectionResetError("closed without an answer")
    return dict(json.loads(data))


def udp(address: str, port: int, timeout: float, source: str | None = None, source_port: int = 0) -> Answer:
    """Ask by datagrams, again every 150 ms, until one is answered."""
    with new_socket(address, socket.SOCK_DGRAM, source, source_port) as datagrams:
        datagrams.connect((address, port))
        return _ask_datagrams(datagrams, timeout)


def _ask_datagrams(datagrams: socket.socket, timeout: float) -> Answer:
    return _until_answered(timeout, lambda: datagrams.send(PAYLOAD), datagrams, lambda data: dict(json.loads(data)))


def _until_answered(
    timeout: float,
    send: Callable[[], Any],
    receiver: socket.socket,
    parse: Callable[[bytes], Answer | None],
) -> Answer:
    """Send, and again every 150 ms; the first datagram that ``parse`` takes is the answer."""
    deadline = time.monotonic() + timeout
    failure: OSError = TimeoutError("timed out")
    next_send = 0.0
    while (now := time.monotonic()) < deadline:
        try:
            if now >= next_send:
                next_send = now + RETRY_S
                send()
            receiver.settimeout(max(0.001, min(next_send, deadline) - time.monotonic()))
            if answer := parse(receiver.recv(2048)):
                return answer
        except TimeoutError:
            continue
        except OSError as error:  # an ICMP error; a later attempt may still pass
            failure = error
            time.sleep(0.02)
    raise failure


def echo_request(v6: bool, identifier: int, sequence: int) -> bytes:
    """An ICMP or ICMPv6 echo request; the kernel fills in the checksum of ICMPv6 only."""
    kind = (ICMPV6_ECHO if v6 else ICMP_ECHO)[0]
    body = struct.pack("!HH", identifier, sequence) + PAYLOAD + b"\0"
    check = 0 if v6 else checksum(struct.pack("!BBH", kind, 0, 0) + body)
    return struct.pack("!BBH", kind, 0, check) + body


def echo_answer(v6: bool, identifier: int, data: bytes) -> int | None:
    """The sequence number of an answer to one's own request."""
    icmp = data if v6 else data[(data[0] & 15) * 4 :]
    if icmp[0] != (ICMPV6_ECHO if v6 else ICMP_ECHO)[1] or struct.unpack_from("!H", icmp, 4)[0] != identifier:
        return None
    return int(struct.unpack_from("!H", icmp, 6)[0])


def echo_socket(address: str) -> socket.socket:
    protocol = socket.IPPROTO_ICMPV6 if ":" in address else socket.IPPROTO_ICMP
    return socket.socket(family_of(address), socket.SOCK_RAW, protocol)


def ping(address: str, timeout: float, source: str | None = None) -> Answer:
    """ICMP or ICMPv6 echo."""
    v6 = ":" in address
    identifier = threading.get_native_id() & 0xFFFF
    with echo_socket(address) as raw:
        if source:
            raw.bind((source, 0))
        message = echo_request(v6, identifier, 1)
        started = time.monotonic()

        def parse(data: bytes) -> Answer | None:
            if echo_answer(v6, identifier, data) is None:
                return None
            return {"rtt_ms": (time.monotonic() - started) * 1000}

        return _until_answered(timeout, lambda: raw.sendto(message, (address, 0)), raw, parse)


class Echoes:
    """Echo requests at a steady pace until stopped, each counted, and their answers."""

    def __init__(self, address: str, every: float) -> None:
        self.address, self.every = address, every
        self.sent = 0
        self.answered: set[int] = set()
        self.stopped = threading.Event()
        self.socket = echo_socket(address)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.settimeout(0.05)
        self.identifier = 0
        self.receiver = threading.Thread(target=self.receive, daemon=True)
        self.sender = threading.Thread(target=self.send, daemon=True)
        self.sender.start()

    def send(self) -> None:
        self.identifier = threading.get_native_id() & 0xFFFF
        self.receiver.start()
        v6, due = ":" in self.address, time.monotonic()
        while not self.stopped.is_set():
            with contextlib.suppress(OSError):  # no route: lost like any other
                self.socket.sendto(echo_request(v6, self.identifier, self.sent), (self.address, 0))
            self.sent = (self.sent + 1) & 0xFFFF
            due = max(due + self.every, time.monotonic() - self.every)
            time.sleep(max(due - time.monotonic(), 0.0))

    def receive(self) -> None:
        over = 0.0
        while not over or (len(self.answered) < self.sent and time.monotonic() < over):
            if self.stopped.is_set() and not over:
                over = time.monotonic() + LAST_ANSWER_S
            try:
                sequence = echo_answer(":" in self.address, self.identifier, self.socket.recv(2048))
            except OSError:
                continue
            if sequence is not None:
                self.answered.add(sequence)

    def stop(self) -> Answer:
        self.stopped.set()
        self.sender.join()
        self.receiver.join()
        self.socket.close()
        return {"sent": self.sent, "answered": len(self.answered)}


running_echoes: dict[str, Echoes] = {}


def echoes_start(echoes: str, address: str, every: float) -> Answer:
    running_echoes[echoes] = Echoes(address, every)
    return {}


def echoes_stop(echoes: str) -> Answer:
    return running_echoes.pop(echoes).stop()


flows: dict[str, socket.socket] = {}


def flow_open(flow: str, protocol: str, address: str, port: int, timeout: float, source: str | None = None) -> Answer:
    """Open a long-lived flow and ask once."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    opened = new_socket(address, kind, source)
    opened.settimeout(timeout)
    opened.connect((address, port))
    flows[flow] = opened
    return flow_ask(flow, timeout)


def flow_ask(flow: str, timeout: float) -> Answer:
    """Ask once more over an open flow."""
    opened = flows[flow]
    if opened.type == socket.SOCK_DGRAM:
        return _ask_datagrams(opened, timeout)
    opened.settimeout(timeout)
    return _ask_stream(opened)


def flow_close(flow: str) -> Answer:
    flows.pop(flow).close()
    return {}


# --- packets with any source, and what arrives -------------------------------------------------------------------


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(source: str, address: str, source_port: int, port: int) -> bytes:
    """A whole IP packet with a UDP datagram in it."""
    family = family_of(address)
    packed = socket.inet_pton(family, source) + socket.inet_pton(family, address)
    length = 8 + len(PAYLOAD)
    pseudo = packed + struct.pack("!HH", socket.IPPROTO_UDP, length)
    udp_header = struct.pack("!HHH", source_port, port, length)
    check = checksum(pseudo + udp_header + b"\0\0" + PAYLOAD) or 0xFFFF
    body = udp_header + struct.pack("!H", check) + PAYLOAD
    if family == socket.AF_INET6:
        return struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + packed + body
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, socket.IPPROTO_UDP, 0) + packed
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


def send_datagram(source: str, address: str, source_port: int, port: int) -> Answer:
    """Send one UDP datagram with any source address, whether this namespace owns it or not."""
    v6 = ":" in address
    with socket.socket(family_of(address), socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP, IPV6_HDRINCL if v6 else socket.IP_HDRINCL, 1)
        raw.sendto(datagram(source, address, source_port, port), (address, 0))
    return {}


class Capture:
    """Records the IP packets that come in on any interface, before any packet filter sees them."""

    def __init__(self) -> None:
        self.packets: list[Answer] = []
        self.stopped = threading.Event()
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self.socket.settimeout(0.05)
        self.thread = threading.Thread(target=self.record, daemon=True)
        self.thread.start()

    def record(self) -> None:
        while not self.stopped.is_set():
            try:
                data, link = self.socket.recvfrom(2048)
            except TimeoutError:
                continue
            if link[2] != socket.PACKET_OUTGOING and (packet := parse_packet(data)):
                self.packets.append(packet)

    def stop(self) -> list[Answer]:
        self.stopped.set()
        self.thread.join()
        self.socket.close()
        return self.packets


captures: dict[str, Capture] = {}


def capture_start(capture: str) -> Answer:
    captures[capture] = Capture()
    return {}


def capture_stop(capture: str) -> Answer:
    return {"packets": captures.pop(capture).stop()}


def parse_packet(data: bytes) -> Answer | None:
    """Addresses, protocol and ports of an IP packet; None for anything else."""
    if data and data[0] >> 4 == 4:
        family, protocol, first, size, body = socket.AF_INET, data[9], 12, 4, (data[0] & 15) * 4
    elif data and data[0] >> 4 == 6:
        family, protocol, first, size, body = socket.AF_INET6, data[6], 8, 16, 40
    else:
        return None
    ports = struct.unpack_from("!HH", data, body) if protocol in (6, 17) and len(data) >= body + 4 else (0, 0)
    return {
        "protocol": protocol,
        "source": socket.inet_ntop(family, data[first : first + size]),
        "destination": socket.inet_ntop(family, data[first + size : first + 2 * size]),
        "source_port": ports[0],
        "port": ports[1],
    }


OPERATIONS: dict[str, Callable[..., Answer]] = {
    operation.__name__: operation
    for operation in (
        listen,
        tcp,
        udp,
        ping,
        echoes_start,
        echoes_stop,
        flow_open,
        flow_ask,
        flow_close,
        send_datagram,
        capture_start,
        capture_stop,
    )
}


output = threading.Lock()


def answer(request: Answer) -> None:
    """Carry out one request and write its answer; a failure is an answer too."""
    try:
        result = OPERATIONS[request["op"]](**request["arguments"])
    except OSError as error:
        result = {"failed": error.strerror or str(error)}
    with output:
        print(json.dumps({"id": request["id"], **result}), flush=True)


def main() -> None:
    try:
        enter_new_namespaces()
    except OSError as error:
        sys.exit(f"cannot make a network namespace ({error}); run as root, outside restricted containers")
    print(json.dumps({"id": 0}), flush=True)
    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
