"""WireGuard devices of this node, as far as they are more than links, and their peers.

A device is the kernel's, or that of a program where the kernel has none (``WireguardUserspace``); such a program stays
when the agent ends, as a device of the kernel does, and goes with its link. All peers of a device of ours are ours.
Nothing tells of changes that others make to keys, ports and peers: they are found at the next reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from felixpy.calc.entries import DeviceKey, Peer, PeerKey, WireGuard
from felixpy.config import Settings
from felixpy.dataplane.links import Links
from felixpy.dataplane.table import KeyedTable, Waiting
from felixpy.dataplane.wireguard_channel import KERNEL, USERSPACE, Channel, KernelChannel, UserspaceChannel
from felixpy.dataplane.wireguard_keys import KeyFiles
from felixpy.model.net import FAMILIES, Family
from felixpy.model.wireguard import public_key
from felixpy.netlink.tunnels import KernelDevice
from felixpy.netlink.wireguard import PeerChange, PeerTraffic, WireGuardPeer

THREADED = "/sys/class/net/{}/threaded"
START_SECONDS = 60.0
"""For so long a program may take to make its device."""


class WireGuardSettings(NamedTuple):
    """The part of the settings that devices depend on beside the calculation."""

    names: Mapping[Family, str]
    keys: Path
    userspace: Path | None

    @classmethod
    def of(cls, settings: Settings) -> WireGuardSettings:
        names = settings.wireguard_interface_name, settings.wireguard_interface_name_v6
        return cls(
            dict(zip(FAMILIES, names, strict=True)), settings.wireguard_key_directory, settings.wireguard_userspace
        )


class WireGuardDevices:
    """What ``DeviceTable`` leaves to this module: keys, ports and marks of WireGuard devices, and how they are made."""

    def __init__(self, settings: WireGuardSettings) -> None:
        self.settings = settings
        self._channels: dict[str, Channel] = {KERNEL: KernelChannel(), USERSPACE: UserspaceChannel()}
        self._public: dict[Family, tuple[bytes, bytes]] = {}

    @property
    def names(self) -> dict[str, DeviceKey]:
        """The keys of the devices, by name."""
        return {name: DeviceKey(family, name) for family, name in self.settings.names.items()}

    def channel(self, device: KernelDevice) -> Channel:
        return self._channels[device.kind]

    def close(self) -> None:
        channel = self._channels[KERNEL]
        assert isinstance(channel, KernelChannel)
        channel.socket.close()

    def resolve(self, key: DeviceKey, device: WireGuard, alias: str, present: KernelDevice | None) -> KernelDevice:
        """The device as it should be; of which kind does not matter once one stands.

        Raises:
            Waiting: its key cannot be read.
        """
        kind = present.kind if present is not None and is_wireguard(present) else KERNEL
        threaded = device.threaded and (present is None or present.threaded is not None)
        return KernelDevice(
            kind, device.mtu, True, alias, port=device.port, mark=device.mark, key=self._public_key(key.family),
            threaded=threaded if present is None or present.threaded is not None else None,
        )  # fmt: skip

    def _public_key(self, family: Family) -> bytes:
        """The public key of the key file, empty if there is none yet."""
        try:
            private = KeyFiles(self.settings.keys).read(family)
        except OSError as error:
            raise Waiting(str(error)) from None
        known = self._public.get(family)
        if known is None or known[0] != private:
            known = self._public[family] = private, public_key(private) if private else b""
        return known[1]

    def complete(self, name: str, device: KernelDevice) -> KernelDevice:
        """A device with what its link does not tell; without that if it cannot be asked."""
        threaded = None
        with contextlib.suppress(OSError):
            threaded = Path(THREADED.format(name)).read_text().strip() == "1"
        try:
            found = self.channel(device).read(name)
        except OSError:
            return device._replace(threaded=threaded)
        return device._replace(port=found.port, mark=found.mark, key=found.public_key, threaded=threaded)

    async def make_in_user_space(self, name: str) -> str:
        """Start the program that makes a device. Returns why there is none."""
        program = self.settings.userspace
        if program is None:
            return (
                "this kernel has no WireGuard (module wireguard), and WireguardUserspace names no program instead: "
                "what should be encrypted is not"
            )
        try:
            process = await asyncio.create_subprocess_exec(
                program, name, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            code = await asyncio.wait_for(process.wait(), START_SECONDS)
        except TimeoutError:
            return f"{program} {name} does not go to the background; WireguardUserspace has to name a program that does"
        except OSError as error:
            return f"{program} cannot be started: {error.strerror}"
        return f"{program} {name} ended with status {code}; run it by hand to see why" if code else ""

    def configure(self, key: DeviceKey, device: KernelDevice, wanted: KernelDevice) -> None:
        """Give a device its key, port and mark.

        Raises:
            OSError: that was refused, or there is no key; one sentence.
        """
        channel = self.channel(device)
        found = channel.read(key.name)
        private = KeyFiles(self.settings.keys).ensure(key.family, found.private_key)
        if (found.private_key, found.port, found.mark) == (private, wanted.port, wanted.mark):
            return
        try:
            channel.configure(key.name, private, wanted.port, wanted.mark)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(f"another program has UDP port {wanted.port}; stop it, or set another port") from None
            raise

    def use_threads(self, name: str, threaded: bool) -> None:
        """Let threads of the kernel do a device's work, or not.

        Raises:
            OSError: that cannot be set.
        """
        path = Path(THREADED.format(name))
        try:
            path.write_text(str(int(threaded)))
        except OSError as error:
            raise OSError(f"{path}, for WireguardThreadingEnabled, cannot be written: {error.strerror}") from None


def is_wireguard(device: KernelDevice) -> bool:
    return device.kind in (KERNEL, USERSPACE)


class PeerTable:
    """Keyed table of peers with its way to read and write."""

    def __init__(
        self,
        links: Links,
        wireguard: WireGuardDevices,
        device_of: Callable[[str], KernelDevice | None],
    ) -> None:
        self.links = links
        self._wireguard = wireguard
        self._device_of = device_of
        self.traffic: dict[PeerKey, PeerTraffic] = {}
        """What went to and fro, as the last reading found it."""
        self.table: KeyedTable[PeerKey, Peer, WireGuardPeer] = KeyedTable(
            "peers", self._resolve, interface_of=lambda key, peer: key.interface
        )

    def _resolve(self, key: PeerKey, peer: Peer) -> WireGuardPeer:
        if key.interface not in self.links.by_name:
            raise Waiting(f"interface {key.interface} does not exist", gone=True)
        if self._device_of(key.interface) is None:
            raise Waiting(f"{key.interface} is not set up")
        return WireGuardPeer((peer.endpoint, peer.port), peer.allowed, peer.keepalive)

    async def read(self) -> dict[PeerKey, WireGuardPeer]:
        """Peers of our devices; what cannot be asked has none."""
        found: dict[PeerKey, WireGuardPeer] = {}
        self.traffic = {}
        for name, key in self._wireguard.names.items():
            device = self._device_of(name)
            if device is None or name not in self.links.by_name:
                continue
            with contextlib.suppress(OSError):
                device_now = self._wireguard.channel(device).read(name)
                found |= {PeerKey(key.family, name, public): peer for public, peer in device_now.peers.items()}
                self.traffic |= {PeerKey(key.family, name, public): one for public, one in device_now.traffic.items()}
        return found

    async def write(self, put: Mapping[PeerKey, WireGuardPeer], remove: Iterable[PeerKey]) -> dict[PeerKey, str]:
        """Write peers; returns why some could not be."""
        committed = self.table.committed
        by_name: dict[str, dict[PeerKey, PeerChange]] = {}
        for key, peer in put.items():
            change = PeerChange(key.public_key, peer, committed.get(key))
            by_name.setdefault(key.interface, {})[key] = change
        for key in remove:
            by_name.setdefault(key.interface, {})[key] = PeerChange(key.public_key, None)
        refused: dict[PeerKey, str] = {}
        for name, changes in by_name.items():
            device = self._device_of(name)
            if device is None:
                refused |= dict.fromkeys(changes, f"{name} is not set up")
                continue
            said = await self._wireguard.channel(device).write(name, list(changes.values()))
            refused |= {key: said[key.public_key] for key in changes if key.public_key in said}
        return refused
