"""Packets made by hand, and how many of which kind a namespace sees."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable, Iterator

from felixpy.demo.probe import datagram
from tests.kernel import run
from tests.underlay.lab import inside

FORGED = 5
"""Packets that each call here sends."""

_SEND = """
import socket, sys
family, kind, protocol, target, port, payload = sys.argv[1:]
made = socket.socket(socket.AddressFamily[family], socket.SocketKind[kind], int(protocol))
for _ in range({count}):
    made.sendto(bytes.fromhex(payload), (target, int(port)))
""".replace("{count}", str(FORGED))

INNER_PORT = 7123


def _send(name: str, kind: str, protocol: int, target: str, port: int, payload: bytes) -> None:
    family = "AF_INET6" if ":" in target else "AF_INET"
    inside(name, "python3", "-c", _SEND, family, kind, str(protocol), target, str(port), payload.hex())


def forge_vxlan(
    name: str, target: str, source: str, destination: str, mac: bytes, vni: int = 4096, port: int = 4789
) -> None:
    """VXLAN from a namespace, by an ordinary socket: in it a datagram for the device with this MAC."""
    inner = datagram(source, destination, 40000, INNER_PORT)
    kind = b"\x86\xdd" if ":" in source else b"\x08\x00"
    frame = mac + bytes.fromhex("660000000001") + kind + inner
    _send(name, "SOCK_DGRAM", 0, target, port, struct.pack("!II", 0x08000000, vni << 8) + frame)


def forge_ipip(name: str, target: str, source: str, destination: str) -> None:
    """IPv4 in IPv4 from a namespace."""
    _send(name, "SOCK_RAW", 4, target, 0, datagram(source, destination, 40000, INNER_PORT))


@contextlib.contextmanager
def counting(name: str, hook: str, *matches: str, family: str = "ip") -> Iterator[Callable[[], list[int]]]:
    """Count packets at a hook of a namespace, behind everybody else's rules there; the call says how many so far."""
    rules = "".join(f"{match} counter; " for match in matches)
    priority = "0" if hook == "prerouting" else "100"
    chain = f"chain c {{ type filter hook {hook} priority {priority}; {rules}}}"
    inside(name, "nft", f"table {family} count_{hook} {{ {chain}; }}")

    def counted() -> list[int]:
        said = inside(name, "nft", "list", "table", family, f"count_{hook}")
        return [int(number) for number in re.findall(r"counter packets (\d+)", said)]

    try:
        yield counted
    finally:
        run("ip", "netns", "exec", name, "nft", "delete", "table", family, f"count_{hook}")
