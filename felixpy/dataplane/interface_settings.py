"""Interface settings by /proc/sys, read first and written only when different; IPv4 ones by netlink where that fails.

/proc/sys comes first although netlink sets all IPv4 settings of an interface at once: a RTM_SETLINK raises
NETDEV_CHANGE, for which the kernel walks every IPv6 route (``rt6_sync_up``), so its cost grows with the number of
workloads (33 µs on an empty node, 3 ms at 6,000 IPv6 routes, Linux 6.18). Where /proc/sys is read-only (an
unprivileged container) netlink still works.

Dumps of links and of neighbour tables tell the present values, so that a correct kernel gets no write. When an
interface becomes a workload's later, what has no notification (all but ``rtnetlink.NETCONF``) is read from its file: a
CNI plugin writes it after the link message. At a start three files per endpoint would take a tenth of the time, so what
the first reading found is believed until the next one, which the agent makes once its first snapshot is in the kernel.
Settings are never put back when nobody wants them any more: we do not know what stood there. IPv6 forwarding is guarded
by the RA rule (DESIGN §11.1): an interface with an advertised default route and ``accept_ra=1`` gets 2 first. That
holds for one interface as for the whole node: the kernel drops default routes that it learnt itself whenever any
``forwarding`` becomes 1 (``addrconf_fixup_forwarding``; ``RTF_ADDRCONF``, which netlink cannot set). Where
systemd-networkd or NetworkManager learn them, ``accept_ra`` is 0 and stays so: with 2 the kernel would add a second
default route and addresses of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from felixpy.calc.entries import SettingsKey, SettingValues
from felixpy.calc.host import ALL_INTERFACES
from felixpy.dataplane.links import Links
from felixpy.dataplane.table import KeyedTable, Waiting
from felixpy.model.net import Family
from felixpy.netlink import rtnetlink
from felixpy.netlink.message import Message
from felixpy.netlink.transport import NetlinkSocket
from felixpy.slices import in_slices

PROC_SYS_NET = "/proc/sys/net"
PROXY_DELAY = "neigh/proxy_delay"
_FAMILIES: dict[int, Family] = {family.value: family for family in Family}

COSTS_ADVERTISED_ROUTES = (Family.V6, "forwarding")
"""To set this makes the kernel drop default routes that it learnt by router advertisement."""


def proc_path(key: SettingsKey, name: str) -> str:
    """The file of one setting: ``neigh/proxy_delay`` of cali1 is net.ipv4.neigh.cali1.proxy_delay."""
    group, _, name = name.rpartition("/")
    return f"{PROC_SYS_NET}/ipv{key.family.version}/{group or 'conf'}/{key.interface}/{name}"


class InterfaceSettingTable:
    """Keyed table of the settings of interfaces with its way to read and write.

    ``believes_start``: what the first reading found is believed until the next one.
    """

    def __init__(self, links: Links, clock: Callable[[], float], *, believes_start: bool = False) -> None:
        self.links = links
        self._clock = clock
        self._believes_next = believes_start
        self._believed: Mapping[int, int] = {}
        """``proxy_delay`` of the interfaces, by index, of which everything that was told is believed."""
        self._believed_at = 0.0
        self.table: KeyedTable[SettingsKey, SettingValues, SettingValues] = KeyedTable(
            "settings", self._resolve, interface_of=lambda key, values: key.interface
        )

    def _resolve(self, key: SettingsKey, values: SettingValues) -> SettingValues:
        if key.interface != ALL_INTERFACES and key.interface not in self.links.by_name:
            raise Waiting(f"interface {key.interface} does not exist")
        if key not in self.table.committed:
            # A link message tells how settings were then, and a CNI plugin writes them after it.
            self.table.learn(key, _present(key, values, self._notified(key)))
        known = self.table.committed[key]
        if len(known) < len(values) and "forwarding" not in values and ipv6_is_off(key):
            return known  # nobody needs IPv6 there, and nothing can come in by it
        return values

    async def read(self, socket: NetlinkSocket) -> dict[SettingsKey, SettingValues]:
        """Present values of what is wanted (the kernel has no owner for settings, so nothing else can be ours).

        Read in slices, from the last link dump and from neighbour tables where they have them.

        Raises:
            NetlinkError: the kernel refused.
        """
        started = self._clock()
        request = rtnetlink.neighbour_table_dump_request(Family.V4)
        delays = dict(filter(None, await socket.decode_sliced(request, rtnetlink.decode_proxy_delay)))
        self._believed, self._believes_next = delays if self._believes_next else {}, False
        self._believed_at = started
        found = {}
        right: dict[tuple[int, int, int | None], object] = {}  # what is as wanted, by identity: held, so that it lasts
        async for some in in_slices(list(self.table.desired.items())):
            for key, values in some:
                link = self.links.by_name.get(key.interface)
                settings = link.settings(key.family) if link else {}
                same = id(values), id(settings), delays.get(link.ifindex) if link and key.family is Family.V4 else None
                if same not in right:
                    told = self._told(key, delays)
                    if not values.items() <= told.items():
                        present = _present(key, values, told)
                        if present or link:  # with IPv6 off an interface has none
                            found[key] = present
                        continue
                    right[same] = values, settings
                found[key] = values
        return found

    def _told(self, key: SettingsKey, delays: Mapping[int, int]) -> Mapping[str, int]:
        """All settings that the last dumps and what came after them tell."""
        link = self.links.by_name.get(key.interface)
        if link is None:
            return {}
        settings = link.settings(key.family)
        if key.family is Family.V4 and link.ifindex in delays:
            return {**settings, PROXY_DELAY: delays[link.ifindex]}
        return settings

    def notify(self, message: Message) -> None:
        """Take a RTM_NEWNETCONF."""
        number, index, news = rtnetlink.decode_netconf(message)
        interface = ALL_INTERFACES if index == rtnetlink.NETCONFA_IFINDEX_ALL else self.links.name_of(index)
        if interface is None or number not in _FAMILIES:
            return
        key = SettingsKey(interface, _FAMILIES[number])
        self.links.tell_settings(interface, key.family, news)  # also what is not wanted now: it may be later
        known = self.table.committed.get(key)
        wanted = self.table.desired.get(key)
        if known is None or wanted is None:
            return
        if len(known) < len(wanted):
            self.table.mark((key,))  # IPv6 was off on the interface, and this tells that it is on
        told = {name: value for name, value in news.items() if name in wanted and known.get(name) != value}
        self.table.observe(key, SettingValues({**known, **told}) if told else known, self._clock())

    def _notified(self, key: SettingsKey) -> Mapping[str, int]:
        """Settings of which the kernel tells each change, as they are now; all of them while the start is believed."""
        link = self.links.by_name.get(key.interface)
        if link is None:
            return {}
        if link.ifindex in self._believed and self.links.first_seen[link.ifindex] <= self._believed_at:
            # A later interface has the index of one that is gone.
            return self._told(key, self._believed)
        settings = link.settings(key.family)
        return {name: settings[name] for name in rtnetlink.NETCONF if name in settings}

    def cost_advertised_routes(self, puts: Mapping[SettingsKey, SettingValues]) -> list[SettingsKey]:
        """Keys of which ``write`` sets what makes the kernel drop advertised default routes."""
        family, name = COSTS_ADVERTISED_ROUTES
        known = self.table.committed
        return [
            key for key, values in puts.items() if key.family is family and name in values.besides(known.get(key, {}))
        ]

    def write(
        self, puts: Mapping[SettingsKey, SettingValues], advertised: set[int], socket: NetlinkSocket
    ) -> dict[SettingsKey, str]:
        """Write what differs from what is known; ``advertised`` are the interfaces with an advertised default route.

        Returns:
            Reasons by key of which something was not written; what was written of it is noted.
        """
        refused = {}
        for key, values in puts.items():
            known: Mapping[str, int] = self.table.committed.get(key, {})
            reasons = self._write_one(key, values.besides(known), advertised, socket)
            written = {name: value for name, value in values.items() if name not in reasons}
            self.links.tell_settings(key.interface, key.family, written)
            if reasons:
                self.table.learn(key, SettingValues({**known, **written}))
                refused[key] = "; ".join(dict.fromkeys(reasons.values()))
        return refused

    def _write_one(
        self, key: SettingsKey, values: SettingValues, advertised: set[int], socket: NetlinkSocket
    ) -> dict[str, str]:
        """Write settings of one interface. Returns reasons by name."""
        reasons, by_netlink = {}, {}
        for name, value in values.items():
            reason = self._protect_default_route(key, name, advertised) or write_proc(proc_path(key, name), value)
            if reason and is_netlink(key, name):
                by_netlink[name] = value
            elif reason:
                reasons[name] = reason
        if by_netlink:
            request = rtnetlink.link_settings_request(self.links.by_name[key.interface].ifindex, by_netlink)
            try:
                answers = [str(refusal) for refusal in socket.transact([request]).values()]
            except OSError as error:
                answers = [str(error)]
            for reason in answers:
                reasons.update(dict.fromkeys(by_netlink, reason))
        if reasons and ipv6_is_off(key):
            reason = (
                f"IPv6 is off on {key.interface}: its MTU is below 1280, or IPv6 was disabled there;"
                " raise the MTU, or give the workload no IPv6 address"
            )
            return dict.fromkeys(reasons, reason)
        return reasons

    def _protect_default_route(self, key: SettingsKey, setting: str, advertised: set[int]) -> str:
        if (key.family, setting) != COSTS_ADVERTISED_ROUTES:
            return ""
        for index in advertised:
            name = self.links.name_of(index)
            if name is None:
                continue
            path = proc_path(SettingsKey(name, Family.V6), "accept_ra")
            if read_proc(path) in (0, 2):
                continue  # with 0 the kernel learns nothing: the route is a daemon's, which the kernel lets stand
            reason = write_proc(path, 2)
            if reason:
                return (
                    f"IPv6 forwarding stays off: it would remove the advertised default route through {name}, and "
                    f"net.ipv6.conf.{name}.accept_ra cannot be set to 2 ({reason}); set it by hand"
                )
        return ""


def is_netlink(key: SettingsKey, name: str) -> bool:
    """Whether a setting goes by netlink: IPv4, known to it, and of one interface."""
    return key.family is Family.V4 and key.interface != ALL_INTERFACES and name in rtnetlink.IPV4_DEVCONF


def ipv6_is_off(key: SettingsKey) -> bool:
    """Whether these are IPv6 settings of an interface that is there and has none: the kernel takes IPv6 from interfaces
    with an MTU below 1280 (``addrconf_notify``), and gives it back with default settings.
    """
    return (
        key.family is Family.V6
        and read_proc(proc_path(key, "forwarding")) is None
        and read_proc(proc_path(key._replace(family=Family.V4), "forwarding")) is not None
    )


def _present(key: SettingsKey, values: SettingValues, told: Mapping[str, int]) -> SettingValues:
    """The kernel's values of the same settings; the very same object if they are equal, of which there are many.

    What is not ``told`` is read from its file.
    """
    present = SettingValues()
    for name in values:
        value = told[name] if name in told else read_proc(proc_path(key, name))
        if value is not None:
            present[name] = value
    return values if present == values else present


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
