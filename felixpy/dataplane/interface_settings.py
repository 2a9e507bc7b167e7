"""Interface settings: IPv4 by netlink (works where /proc/sys is read-only), the rest by /proc/sys, read first.

The link dump tells the present values, so that a correct kernel gets no write. Settings are never put back when nobody
wants them any more: we do not know what stood there. Forwarding of the whole node is guarded by the RA rule (DESIGN
§11.1): an interface with an advertised default route gets ``accept_ra=2`` first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from felixpy.calc.entries import SettingKey
from felixpy.calc.host import ALL_INTERFACES
from felixpy.dataplane.links import Links
from felixpy.dataplane.table import KeyedTable, Waiting
from felixpy.model.net import Family
from felixpy.netlink import rtnetlink
from felixpy.netlink.transport import Request

PROC_SYS_NET = Path("/proc/sys/net")


def proc_path(key: SettingKey) -> Path:
    """``net.ipv4.neigh.cali1.proxy_delay`` → its file; interface names may hold dots."""
    group, _, name = key.name.rpartition("/")
    return PROC_SYS_NET / f"ipv{key.family.version}" / (group or "conf") / key.interface / name


class InterfaceSettingTable:
    """Keyed table of settings with its way to read and write."""

    def __init__(self, links: Links) -> None:
        self.links = links
        self.table: KeyedTable[SettingKey, int, int] = KeyedTable(
            "settings", self._resolve, interface_of=lambda key, value: key.interface
        )

    def _resolve(self, key: SettingKey, value: int) -> int:
        if key.interface != ALL_INTERFACES and key.interface not in self.links.by_name:
            raise Waiting(f"interface {key.interface} does not exist")
        if key not in self.table.committed:
            present = self._read_one(key)
            if present is not None:
                self.table.committed[key] = present
        return value

    def read(self) -> dict[SettingKey, int]:
        """Present values of what is wanted (the kernel has no owner for settings, so nothing else can be ours)."""
        found = {}
        for key in self.table.desired:
            value = self._read_one(key)
            if value is not None:
                found[key] = value
        return found

    def _read_one(self, key: SettingKey) -> int | None:
        link = self.links.by_name.get(key.interface)
        value = link.setting(key.family, key.name) if link else None
        return read_proc(proc_path(key)) if value is None else value

    def requests(self, puts: Mapping[SettingKey, int]) -> list[tuple[list[SettingKey], Request]]:
        """One netlink message per interface for the IPv4 settings among ``puts``."""
        by_interface: defaultdict[str, list[SettingKey]] = defaultdict(list)
        for key in puts:
            if is_netlink(key):
                by_interface[key.interface].append(key)
        return [
            (
                keys,
                rtnetlink.link_settings_request(
                    self.links.by_name[interface].ifindex, {key.name: puts[key] for key in keys}
                ),
            )
            for interface, keys in by_interface.items()
        ]

    def write_proc(self, puts: Mapping[SettingKey, int], advertised: set[int]) -> dict[SettingKey, str]:
        """Write what netlink cannot; ``advertised`` are the interfaces with an advertised default route.

        Returns:
            Reasons by key that was not written.
        """
        refused = {}
        for key, value in puts.items():
            if is_netlink(key):
                continue
            reason = self._protect_default_route(key, advertised) or write_proc(proc_path(key), value)
            if reason:
                refused[key] = reason
        return refused

    def _protect_default_route(self, key: SettingKey, advertised: set[int]) -> str:
        if key != SettingKey(ALL_INTERFACES, Family.V6, "forwarding"):
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


def is_netlink(key: SettingKey) -> bool:
    """Whether a setting goes by netlink: IPv4, known to it, and of one interface."""
    return key.family is Family.V4 and key.interface != ALL_INTERFACES and key.name in rtnetlink.IPV4_DEVCONF


def read_proc(path: Path) -> int | None:
    """A number under /proc/sys, None if it is not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def write_proc(path: Path, value: int) -> str:
    """Write a number; returns why it failed, or nothing."""
    try:
        path.write_text(str(value))
    except OSError as error:
        return f"cannot write {path}: {error.strerror}"
    return ""
