"""How a WireGuard device is told what it has: by generic netlink, or by the socket of a program that is the device.

Only this module knows which of the two a device is; above it both are read and written alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Sequence
from typing import Protocol

from felixpy.netlink import wireguard, wireguard_uapi
from felixpy.netlink.message import Request
from felixpy.netlink.transport import NetlinkError, NetlinkSocket
from felixpy.netlink.wireguard import NETLINK_GENERIC, PeerChange, WireGuardDevice

KERNEL, USERSPACE = "wireguard", "tun"
"""The kinds of links that WireGuard devices are (``IFLA_INFO_KIND``)."""

AT_ONCE = 200
"""Peers in one send."""


class Channel(Protocol):
    """Reads and writes devices of one kind, by their names."""

    def read(self, name: str) -> WireGuardDevice:
        """
        Raises:
            OSError: it cannot be read.
        """

    def configure(self, name: str, private_key: bytes, port: int, mark: int) -> None:
        """
        Raises:
            OSError: it was refused.
        """

    async def write(self, name: str, changes: Sequence[PeerChange]) -> dict[bytes, str]:
        """Write peers; returns why some could not be, by public key."""


class KernelChannel:
    """By generic netlink. The number that WireGuard has there is asked for once the module is needed."""

    def __init__(self) -> None:
        self.socket = NetlinkSocket(NETLINK_GENERIC)
        self._family = 0

    def read(self, name: str) -> WireGuardDevice:
        return wireguard.decode_device(self.socket.dump_all(wireguard.device_dump_request(self._number(), name)))

    def configure(self, name: str, private_key: bytes, port: int, mark: int) -> None:
        request = wireguard.device_request(self._number(), name, private_key, port, mark)
        for refusal in self.socket.transact([request]).values():
            raise NetlinkError(refusal.errno, str(refusal))

    async def write(self, name: str, changes: Sequence[PeerChange]) -> dict[bytes, str]:
        refused: dict[bytes, str] = {}
        for start in range(0, len(changes), AT_ONCE):
            if start:
                await asyncio.sleep(0)
            some = changes[start : start + AT_ONCE]
            try:
                requests: list[Request] = []
                keys: list[bytes] = []
                for change in some:
                    for request in wireguard.peer_requests(self._number(), name, change):
                        requests.append(request)
                        keys.append(change.key)
                refused |= {keys[at]: str(refusal) for at, refusal in self.socket.transact(requests).items()}
            except OSError as error:
                refused |= dict.fromkeys((change.key for change in some), str(error))
        return refused

    def _number(self) -> int:
        if not self._family:
            self._family = wireguard.decode_family(self.socket.ask(wireguard.family_query()))
        return self._family

    def close(self) -> None:
        self.socket.close()


class UserspaceChannel:
    """By the socket of a user-space device."""

    def read(self, name: str) -> WireGuardDevice:
        try:
            return wireguard_uapi.decode_device(wireguard_uapi.ask(name, wireguard_uapi.GET))
        except ValueError as error:
            raise OSError(errno.EPROTO, f"the program behind {name} answers nonsense: {error}") from None

    def configure(self, name: str, private_key: bytes, port: int, mark: int) -> None:
        wireguard_uapi.ask(name, wireguard_uapi.device_request(private_key, port, mark))

    async def write(self, name: str, changes: Sequence[PeerChange]) -> dict[bytes, str]:
        refused: dict[bytes, str] = {}
        for start in range(0, len(changes), AT_ONCE):
            some = changes[start : start + AT_ONCE]
            if await self._write(name, some):  # which of them, it does not say
                refused |= {one.key: reason for one in some if (reason := await self._write(name, [one]))}
        return refused

    async def _write(self, name: str, changes: Sequence[PeerChange]) -> str:
        try:
            await asyncio.to_thread(wireguard_uapi.ask, name, wireguard_uapi.peers_request(changes))
        except OSError as error:
            return str(error)
        return ""


def read_device(kind: str, name: str) -> WireGuardDevice:
    """A device as it is now.

    Raises:
        OSError: it cannot be read.
    """
    if kind == USERSPACE:
        return UserspaceChannel().read(name)
    with contextlib.closing(KernelChannel()) as channel:
        return channel.read(name)
