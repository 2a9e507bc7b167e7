"""What tests of kernel tables share: running ``ip`` and ``nft``, and a socket that records the kernel's answers."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from felixpy.calc.entries import ElementKey, SetName, SetType
from felixpy.config import Settings
from felixpy.dataplane.interface_settings import PROC_SYS_NET
from felixpy.dataplane.links import LinkEvents, Links
from felixpy.dataplane.table import KeyedTable
from felixpy.demo.patience import Patience
from felixpy.model.net import Family, Net, parse_address
from felixpy.netlink import rtnetlink
from felixpy.netlink.message import Message
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkSocket

PROTOCOL = Settings().device_route_protocol


class RecordingSocket(NetlinkSocket):
    """A netlink socket that keeps every message received."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        super().__init__(protocol)
        self.received: list[Message] = []

    def _receive(self) -> list[Message]:
        messages = super()._receive()
        self.received += messages
        return messages


class Clock:
    """A clock that stands until it is told to move."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def run(*command: str, stdin: str = "") -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


SET_WENT = "doesn't exist"
"""What ``iptables-save`` ends with where an agent works beside it: it reads a table, then asks for the names of the
sets in its rules, and one of them has gone with its rules. Then it is to be asked again.
"""


def iptables_save(command: str) -> str:
    """All tables as text, beside an agent that works."""
    patience = Patience(30.0)
    while (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode != 0:
        assert SET_WENT in done.stderr and not patience.over(), done.stderr
    return done.stdout


def ip(*lines: str) -> None:
    """Lines of ``ip``, in one process."""
    run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")


def ip_json(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("ip", "-json", "-details", *arguments) or "[]")
    return found


def pairs(*names: str) -> None:
    """Veth pairs, both ends up: ``cali1`` and its peer ``p-cali1``."""
    for name in names:
        ip(f"link add {name} type veth peer name p-{name}", f"link set {name} up", f"link set p-{name} up")


def sysctl(path: str, value: int | None = None) -> int:
    """Read (or set and read) a number under /proc/sys/net of this network namespace."""
    file = Path(PROC_SYS_NET) / path
    if value is not None:
        file.write_text(str(value))
    return int(file.read_text())


def read_links(links: Links) -> LinkEvents:
    """Take a dump of the kernel's links."""
    socket = NetlinkSocket(NETLINK_ROUTE)
    try:
        messages = socket.dump_all(rtnetlink.link_dump_request())
    finally:
        socket.close()
    return asyncio.run(links.adopt([*map(rtnetlink.decode_link, messages)]))


def reread_links(links: Links, table: KeyedTable[Any, Any, Any]) -> None:
    """Take a dump of the kernel's links and tell a table what it means, as the apply loop does."""
    events = read_links(links)
    for interface in events.changed | events.lost:
        table.interface_changed(interface, lost=interface in events.lost)


def packed(text: str) -> bytes:
    return parse_address(text)


def element(name: SetName, net: str, interface: str = "") -> ElementKey:
    return ElementKey(name, Net.parse(net), interface)


def uncovered(keys: Iterable[ElementKey]) -> set[ElementKey]:
    """What the calculation hands out: members of one set and interface that do not cover each other."""
    wide = {key for key in keys if key.set.type is not SetType.HOST_INTERFACE}
    return {
        key
        for key in keys
        if not any(
            other != key and other[::2] == key[::2] and other.family is key.family and other.net.covers(key.net)
            for other in wide
        )
    }


def any_net(number: int, length: int, family: Family) -> Net:
    host_bits = family.bits - length
    return Net((number >> host_bits << host_bits).to_bytes(family.bits // 8, "big"), length)
