"""The socket of a user-space WireGuard device (``wireguard-go``, ``boringtun-cli``): text, a line for each value.

The cross-platform protocol of WireGuard: https://www.wireguard.com/xplatform/. What a device answers is its own
business, so every answer is bounded in time and read as what may be wrong.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from felixpy.model.net import Family, Net, family_of, format_address, parse_address
from felixpy.model.wireguard import public_key
from felixpy.netlink.wireguard import PeerChange, PeerTraffic, WireGuardDevice, WireGuardPeer

FOLDER = Path("/var/run/wireguard")
"""Where such programs put their sockets, all of them."""

TIMEOUT_SECONDS = 5.0


def socket_path(name: str) -> Path:
    return FOLDER / f"{name}.sock"


def ask(name: str, request: str) -> str:
    """What a device answers, without the line that says that all is well.

    Raises:
        OSError: it cannot be asked, or refuses.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_SECONDS)
        connection.connect(str(socket_path(name)))
        connection.sendall(request.encode())
        answer = b""
        while not answer.endswith(b"\n\n"):
            if not (part := connection.recv(1 << 16)):
                break
            answer += part
    lines = answer.decode(errors="replace").rstrip("\n").split("\n")
    if not lines[-1].startswith("errno="):
        raise OSError(errno.EPROTO, f"the program behind {name} ended its answer early")
    if code := abs(int(lines[-1].removeprefix("errno=") or 0)):
        raise OSError(code, f"the program behind {name} refuses (errno {code})")
    return "\n".join(lines[:-1])


def device_request(private_key: bytes, port: int, mark: int) -> str:
    """Give a device its key, port and mark; peers stay."""
    return f"set=1\nprivate_key={private_key.hex()}\nlisten_port={port}\nfwmark={mark}\n\n"


def peers_request(changes: Iterable[PeerChange]) -> str:
    return "\n".join(("set=1", *(line for change in changes for line in _peer(change)), "", ""))


def _peer(change: PeerChange) -> Iterator[str]:
    yield f"public_key={change.key.hex()}"
    if change.peer is None:
        yield "remove=true"
        return
    if change.peer.endpoint is not None:
        yield f"endpoint={_endpoint(*change.peer.endpoint)}"
    yield f"persistent_keepalive_interval={change.peer.keepalive}"
    if not change.only_adds:
        yield "replace_allowed_ips=true"
    yield from (f"allowed_ip={net}" for net in change.allowed)


def _endpoint(address: bytes, port: int) -> str:
    text = format_address(address)
    return f"[{text}]:{port}" if family_of(address) is Family.V6 else f"{text}:{port}"


GET = "get=1\n\n"


def decode_device(answer: str) -> WireGuardDevice:
    """A device of what it answered to ``GET``.

    Raises:
        ValueError: it says something that cannot be.
    """
    own: dict[str, str] = {}
    peers: list[tuple[bytes, list[tuple[str, str]]]] = []
    for line in answer.split("\n"):
        name, _, value = line.partition("=")
        if name == "public_key":
            peers.append((bytes.fromhex(value), []))
        elif peers:
            peers[-1][1].append((name, value))
        else:
            own[name] = value
    private = bytes.fromhex(own.get("private_key", ""))
    private = private if any(private) else b""
    return WireGuardDevice(
        private,
        public_key(private) if private else b"",
        int(own.get("listen_port", "0")),
        int(own.get("fwmark", "0")),
        {key: _decode_peer(fields) for key, fields in peers},
        {key: _decode_traffic(dict(fields)) for key, fields in peers},
    )


def _decode_peer(fields: list[tuple[str, str]]) -> WireGuardPeer:
    one = dict(fields)
    endpoint = None
    if "endpoint" in one:
        address, _, port = one["endpoint"].rpartition(":")
        endpoint = (parse_address(address.strip("[]").partition("%")[0]), int(port))
    allowed = sorted(Net.parse(value) for name, value in fields if name == "allowed_ip")
    return WireGuardPeer(endpoint, tuple(allowed), int(one.get("persistent_keepalive_interval", "0")))


def _decode_traffic(one: dict[str, str]) -> PeerTraffic:
    handshake = int(one.get("last_handshake_time_sec", "0")) + int(one.get("last_handshake_time_nsec", "0")) / 1e9
    return PeerTraffic(handshake, int(one.get("rx_bytes", "0")), int(one.get("tx_bytes", "0")))
