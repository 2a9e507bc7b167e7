"""Interface settings by /proc/sys, read first and written only when different; IPv4 ones by netlink where that fails.

/proc/sys comes first although netlink sets all IPv4 settings of an interface at once: a RTM_SETLINK raises
NETDEV_CHANGE, for which the kernel walks every IPv6 route (``rt6_sync_up``), so its cost grows with the number of
workloads (33 µs on an empty node, 3 ms at 6,000 IPv6 routes, Linux 6.18). Where /proc/sys is read-only (an
unprivileged container) netlink still works.

The link dump tells the present values, so that a correct kernel gets no write. Settings are never put back when nobody
wants them any more: we do not know what stood there. IPv6 forwarding is guarded by the RA rule (DESIGN §11.1): an
interface with an advertised default route gets ``accept_ra=2`` first. That holds for one interface as for the whole
node: the kernel drops advertised default routes whenever any ``forwarding`` becomes 1 (``addrconf_fixup_forwarding``).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping

from felixpy.calc.entries import SettingKey
from felixpy.calc.host import ALL_INTERFACES
from felixpy.dataplane.links import Links
from felixpy.dataplane.table import KeyedTable, Waiting
from felixpy.model.net import Family
from felixpy.netlink import rtnetlink
from felixpy.netlink.transport import Message, NetlinkSocket
from felixpy.slices import in_slices

PROC_SYS_NET = "/proc/sys/net"


def proc_path(key: SettingKey) -> str:
    """``net.ipv4.neigh.cali1.proxy_delay`` → its file; interface names may hold dots."""
    group, _, name = key.name.rpartition("/")
    return f"{PROC_SYS_NET}/ipv{key.family.version}/{group or 'conf'}/{key.interface}/{name}"


class InterfaceSettingTable:
    """Keyed table of settings with its way to read and write."""

    def __init__(self, links: Links, clock: Callable[[], float]) -> None:
        self.links = links
        self._clock = clock
        self.table: KeyedTable[SettingKey, int, int] = KeyedTable(
            "settings", self._resolve, interface_of=lambda key, value: key.interface
        )

    def _resolve(self, key: SettingKey, value: int) -> int:
        if key.interface != ALL_INTERFACES and key.interface not in self.links.by_name:
            raise Waiting(f"interface {key.interface} does not exist")
        if key not in self.table.committed:
            # Not from the last link message: it tells how settings were then, and a CNI plugin writes them after it.
            present = read_proc(proc_path(key))
            if present is not None:
                self.table.committed[key] = present
        return value

    async def read(self, _: NetlinkSocket) -> dict[SettingKey, int]:
        """Present values of what is wanted (the kernel has no owner for settings, so nothing else can be ours).

        Read in slices, from the last link dump where it has them.
        """
        found = {}
        async for keys in in_slices(list(self.table.desired)):
            for key in keys:
                value = self._read_one(key)
                if value is not None:
                    found[key] = value
        return found

    def notify(self, message: Message) -> None:
        """Take a RTM_NEWNETCONF."""
        number, index, settings = rtnetlink.decode_netconf(message)
        interface = ALL_INTERFACES if index == rtnetlink.NETCONFA_IFINDEX_ALL else self.links.name_of(index)
        if interface is None or number not in set(Family):
            return
        for name, value in settings.items():
            key = SettingKey(interface, Family(number), name)
            if key in self.table.desired:
                self.table.observe(key, value, self._clock())

    def _read_one(self, key: SettingKey) -> int | None:
        link = self.links.by_name.get(key.interface)
        value = link.setting(key.family, key.name) if link else None
        return read_proc(proc_path(key)) if value is None else value

    def write(
        self, puts: Mapping[SettingKey, int], advertised: set[int], socket: NetlinkSocket
    ) -> dict[SettingKey, str]:
        """Write settings; ``advertised`` are the interfaces with an advertised default route.

        Returns:
            Reasons by key that was not written.
        """
        refused = {}
        by_netlink: defaultdict[str, list[SettingKey]] = defaultdict(list)
        for key, value in puts.items():
            reason = self._protect_default_route(key, advertised) or write_proc(proc_path(key), value)
            if reason and is_netlink(key):
                by_netlink[key.interface].append(key)
            elif reason:
                refused[key] = reason
        for interface, keys in by_netlink.items():
            values = {key.name: puts[key] for key in keys}
            request = rtnetlink.link_settings_request(self.links.by_name[interface].ifindex, values)
            try:
                reasons = [str(refusal) for refusal in socket.transact([request]).values()]
            except OSError as error:
                reasons = [str(error)]
            for reason in reasons:
                refused.update(dict.fromkeys(keys, reason))
        return refused

    def _protect_default_route(self, key: SettingKey, advertised: set[int]) -> str:
        if not costs_advertised_routes(key):
            return ""
        for index in advertised:
            name = self.links.name_of(index)
            if name is None:
                continue
            path = proc_path(SettingKey(name, Family.V6, "accept_ra"))
            if read_proc(path) == 2:
                continue
            reason = write_proc(path, 2)
            if reason:
                return (
                    f"IPv6 forwarding stays off: it would remove the advertised default route through {name}, and "
                    f"net.ipv6.conf.{name}.accept_ra cannot be set to 2 ({reason}); set it by hand"
                )
        return ""


def costs_advertised_routes(key: SettingKey) -> bool:
    """Whether to set this makes the kernel drop default routes that it learnt by router advertisement."""
    return key.family is Family.V6 and key.name == "forwarding"


def is_netlink(key: SettingKey) -> bool:
    """Whether a setting goes by netlink: IPv4, known to it, and of one interface."""
    return key.family is Family.V4 and key.interface != ALL_INTERFACES and key.name in rtnetlink.IPV4_DEVCONF


def read_proc(path: str) -> int | None:
    """A number under /proc/sys, None if it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(os.read(descriptor, 32))
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def write_proc(path: str, value: int) -> str:
    """Write a number; returns why it failed, or nothing."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, str(value).encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"cannot write {path}: {error.strerror}"
    return ""
