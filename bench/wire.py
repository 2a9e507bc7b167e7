"""Two workloads with wires in a network of one's own, and what a packet from one to the other costs the kernel.

    workload a ── cali… ─ the network of this process ─ cali… ── workload b

Packets are put on a's wire by ``sendmmsg``, many with one call; the kernel carries each through veth, router and veth
before it takes the next, so that the time of the call is that of their ways. Nobody answers in b, which has no address.
Must never run outside a network of the benchmark's own.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from felixpy.model.net import format_address
from felixpy.netlink.namespaces import enter

BATCH = 64
"""Packets of one call."""

UDP = 17
PORTS = range(10_000, 60_000)
_IPCTNL_MSG_CT_DELETE = struct.pack("=IHHIIBBH", 20, 1 << 8 | 2, 0x5, 1, 0, socket.AF_INET, 0, 0)
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_libc = ctypes.CDLL(None, use_errno=True)


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MessageHeader(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_IoVec)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    _fields_ = (("header", _MessageHeader), ("sent", ctypes.c_uint))


class Wire:
    """The two workloads; addresses are IPv4, packed."""

    def __init__(self, a: tuple[str, bytes], b: tuple[str, bytes]) -> None:
        """Each with the name of its interface on the node, and its address."""
        self._addresses = a[1], b[1]
        self._ports = 0
        self._sockets = [self._build(number, *one) for number, one in enumerate((a, b))]
        self._netfilter = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)

    def forget(self) -> None:
        """Delete all entries of connection tracking."""
        self._netfilter.send(_IPCTNL_MSG_CT_DELETE)
        self._netfilter.recv(4096)

    def new(self, port: int) -> float:
        """Seconds of one packet, of many from a to this port of b, each of a connection of its own."""
        frames = []
        for _ in range(BATCH):
            frames.append(self._frame(0, PORTS[self._ports % len(PORTS)], port))
            self._ports += 1
        return self._send(0, frames)

    def establish(self, port: int) -> None:
        """Send a packet there and one back, of the connection that ``established`` is of."""
        self._send(0, [self._frame(0, 9_000, port)])
        self._send(1, [self._frame(1, port, 9_000)])

    def established(self, port: int) -> float:
        """Seconds of one packet, of many of the connection."""
        return self._send(0, [self._frame(0, 9_000, port)] * BATCH)

    def arrived(self) -> int:
        """Packets that b has received."""
        command = ["ip", "-n", "w1", "-s", "-j", "link", "show", "eth0"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return int(told[0]["stats64"]["rx"]["packets"])

    def _build(self, number: int, interface: str, address: bytes) -> socket.socket:
        name, inner, outer = f"w{number}", _mac(3, number), _mac(4, number)
        lines = [
            f"link add {interface} address {outer.hex(':')} type veth"
            f" peer name eth0 address {inner.hex(':')} netns {name}",
            f"link set {interface} up",
            f"route replace {format_address(address)} dev {interface}",
            f"neigh replace {format_address(address)} lladdr {inner.hex(':')} dev {interface} nud permanent",
        ]
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "eth0", "up"], check=True)
        made: list[socket.socket] = []
        thread = threading.Thread(target=_open, args=(Path("/run/netns") / name, made))
        thread.start()
        thread.join()
        return made[0]

    def _frame(self, number: int, source_port: int, port: int) -> bytes:
        source, destination = self._addresses if number == 0 else self._addresses[::-1]
        header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 38, 0, 0, 64, UDP, 0, source, destination)
        header = header[:10] + struct.pack(">H", _checksum(header)) + header[12:]
        datagram = struct.pack(">HHHH", source_port, port, 18, 0) + bytes(10)
        return _mac(4, number) + _mac(3, number) + b"\x08\x00" + header + datagram

    def _send(self, number: int, frames: Sequence[bytes]) -> float:
        buffers = [ctypes.create_string_buffer(one, len(one)) for one in frames]
        vectors = [_IoVec(ctypes.cast(one, ctypes.c_void_p), len(one)) for one in buffers]
        messages = (_Message * len(frames))()
        for message, vector in zip(messages, vectors, strict=True):
            message.header.vectors, message.header.vector_count = ctypes.pointer(vector), 1
        descriptor = self._sockets[number].fileno()
        began = time.perf_counter()
        sent = _libc.sendmmsg(descriptor, messages, len(frames), 0)
        spent = time.perf_counter() - began
        if sent != len(frames):
            raise OSError(ctypes.get_errno(), f"{sent} of {len(frames)} packets were sent")
        return spent / len(frames)


def _open(path: Path, made: list[socket.socket]) -> None:
    """A socket on the wire of a workload; by a thread that ends there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    enter(descriptor)
    os.close(descriptor)
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    found.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    found.bind(("eth0", 0))
    made.append(found)


def _mac(kind: int, number: int) -> bytes:
    return bytes((2, 0, 0, 0, kind, number))


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
