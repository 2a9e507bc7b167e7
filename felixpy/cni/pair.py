"""The workload's interface in the kernel: a veth pair, and in the workload's network its addresses and routes.

    node                                      workload
    cali…  ee:ee:ee:ee:ee:ee ◄── veth ──► eth0  address/32, address/128
           fe80::ecee:eeff:feee:eeee           default via 169.254.1.1 and via fe80::ecee:eeff:feee:eeee

Everything goes by netlink; what has no message (``disable_ipv6``, ``accept_ra``) by the workload's /proc/sys.
Both gateways are permanent neighbours, so the first packet waits for nobody. Invariant: a pair is made as a whole or
not at all, and only a link with our mark is ever removed: its alias names container and interface, and until it has one
its group says so. Blocking: it runs in a thread, of which the workload's part never comes back to the agent's network.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from felixpy.cni.errors import CniError, Code
from felixpy.cni.result import GATEWAYS, HOST_MAC
from felixpy.model.net import Family, Net
from felixpy.netlink.lookup import leading_route
from felixpy.netlink.message import Request
from felixpy.netlink.namespaces import enter
from felixpy.netlink.rtnetlink import (
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RTN_LOCAL,
    RTN_UNICAST,
    KernelNeighbour,
    KernelRoute,
    KernelRouteKey,
    address_dump_request,
    decode_route,
    link_dump_request,
    neighbour_request,
    route_dump_request,
    route_request,
)
from felixpy.netlink.transport import NETLINK_ROUTE, NetlinkError, NetlinkSocket
from felixpy.netlink.veth import (
    End,
    NamedLink,
    address_request,
    addresses_of,
    decode_named_link,
    link_delete_request,
    link_get_request,
    link_mark_request,
    link_no_own_address_request,
    link_up_request,
    veth_request,
)

MARK = "felixpy:"
MAIN_TABLE = 254
RTPROT_BOOT = 3
IPV6_METRIC = 1024
READY_WITHIN = 10.0
PROC = Path("/proc/sys/net/ipv6/conf")
_LINK_LOCAL = Net(GATEWAYS[Family.V6], 64)


class Pair(NamedTuple):
    """What is wanted. ``addresses`` are /32 and /128; ``mtu`` 0: the kernel's own."""

    interface: str
    container_id: str
    container_interface: str
    mac: bytes
    addresses: tuple[Net, ...]
    mtu: int = 0

    @property
    def alias(self) -> str:
        return alias_of(self.container_id, self.container_interface)

    @property
    def families(self) -> set[Family]:
        return {address.family for address in self.addresses}


def alias_of(container_id: str, container_interface: str) -> str:
    """The mark of a link: how it is known after a restart, and by the plugin without the agent."""
    return f"{MARK}{container_id}/{container_interface}"


def new_mac() -> bytes:
    """A random locally administered MAC address of one interface."""
    random = os.urandom(6)
    return bytes(((random[0] & 0xFC) | 2,)) + random[1:]


def link_local(mac: bytes) -> Net:
    """The link-local address that is made from a MAC (RFC 4291, appendix A)."""
    identifier = bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return Net(b"\xfe\x80" + bytes(6) + identifier, 64)


# --- making -------------------------------------------------------------------------------------------------


def make(pair: Pair, namespace: int) -> None:
    """Make the pair; the calling thread is in the workload's network afterwards and must end.

    Raises:
        CniError: the kernel refused; nothing is left.
    """
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as host:
        made = False
        try:
            _make_link(host, pair, namespace)
            made = True
            _host_end(host, pair)
            enter(namespace)
            _container_end(pair)
            _until_it_sends(host, pair.interface)
        except BaseException as error:
            if made:
                _delete_by_name(host, pair.interface)
            if isinstance(error, OSError):
                raise _refused(f"the interface of {pair.alias.removeprefix(MARK)} cannot be made", error) from None
            raise


def _make_link(host: NetlinkSocket, pair: Pair, namespace: int) -> None:
    """By itself, before anything else is said of the name: a link that has it already is not ours to change, unless
    an agent that was killed did not get to its mark.
    """
    ends = End(pair.interface, HOST_MAC), End(pair.container_interface, pair.mac)
    request = veth_request(*ends, namespace, mtu=pair.mtu)
    refusal = host.transact([request]).get(0)
    if refusal is not None and refusal.errno == errno.EEXIST:
        left = find(host, pair.interface)
        if left is not None and left.is_unfinished:
            _delete(host, left.ifindex)
            refusal = host.transact([request]).get(0)
    if refusal is not None and refusal.errno == errno.EEXIST:
        where = f"{pair.interface} on the node" if find(host, pair.interface) else f"{pair.container_interface} in it"
        raise CniError(Code.KERNEL_REFUSED, f"container {pair.container_id}: there is an interface {where} already")
    if refusal is not None:
        raise CniError(Code.KERNEL_REFUSED, f"the interface {pair.interface} cannot be made: {refusal}")


def _host_end(host: NetlinkSocket, pair: Pair) -> None:
    """Mark, no address but the workloads' IPv6 gateway, up."""
    name = pair.interface
    refused = host.transact([link_mark_request(name, pair.alias), link_no_own_address_request(name)])
    if 0 in refused:  # without IPv6 in the kernel there is nothing that could come by itself
        raise NetlinkError(refused[0].errno, str(refused[0]))
    address = [address_request(socket.if_nametoindex(name), _LINK_LOCAL)] if Family.V6 in pair.families else []
    _all(host, [*address, link_up_request(name)])


def _until_it_sends(host: NetlinkSocket, interface: str) -> None:
    """The node's end went up before there was another one, so it gets its queue when the kernel's work of the carrier
    (``net/core/link_watch.c``) comes to it; until then what is sent by it is dropped without a word.
    """
    _until(lambda: _sends(host, interface), f"{interface} has no carrier")


def _until_it_receives(netlink: NetlinkSocket, pair: Pair) -> None:
    """An IPv6 address, also one without duplicate detection, becomes the network's own when the kernel's work of
    detection (``addrconf_dad_work``) comes to it, which waits for whoever changes any network; until then what comes
    for it is dropped without a word.
    """
    own = [address.packed for address in pair.addresses if address.family is Family.V6]
    _until(
        lambda: all(_is_local(netlink, address) for address in own),
        f"an IPv6 address of {pair.container_interface} is not local",
    )


def _until(holds: Callable[[], bool], otherwise: str) -> None:
    """Wait for work that the kernel has put off.

    Raises:
        OSError: it took too long.
    """
    until = time.monotonic() + READY_WITHIN
    pause = 0.0005
    while not holds():
        if time.monotonic() > until:
            raise OSError(errno.ETIMEDOUT, f"{otherwise} after {READY_WITHIN:g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _is_local(netlink: NetlinkSocket, address: bytes) -> bool:
    try:
        return leading_route(netlink, address).kind == RTN_LOCAL
    except NetlinkError:  # no route at all
        return False


def _sends(host: NetlinkSocket, interface: str) -> bool:
    return decode_named_link(host.ask(link_get_request(interface))).sends


def _container_end(pair: Pair) -> None:
    name = pair.container_interface
    if Family.V6 in pair.families:
        for interface in ("lo", name):
            write_sysctl(f"{interface}/disable_ipv6", "0", required=True)
    write_sysctl(f"{name}/accept_ra", "0")
    write_sysctl(f"{name}/accept_dad", "0")
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as netlink:
        index = socket.if_nametoindex(name)
        no_own = [link_no_own_address_request(name)] if PROC.exists() else []
        _all(netlink, [*no_own, link_up_request(name), *_container_requests(pair, index)])
        _until_it_receives(netlink, pair)


def _container_requests(pair: Pair, index: int) -> list[Request]:
    found = [address_request(index, address) for address in pair.addresses]
    if Family.V6 in pair.families:
        found.append(address_request(index, link_local(pair.mac)))
    for family in sorted(pair.families):
        found.append(neighbour_request(KernelNeighbour(index, GATEWAYS[family], HOST_MAC, RTPROT_BOOT)))
        found += [route_request(key, route) for key, route in _routes(family, index)]
    return found


def _routes(family: Family, index: int) -> list[tuple[KernelRouteKey, KernelRoute]]:
    gateway = GATEWAYS[family]
    everything = Net(bytes(len(gateway)), 0)
    via = KernelRoute(RTN_UNICAST, index, gateway, scope=RT_SCOPE_UNIVERSE, protocol=RTPROT_BOOT)
    if family is Family.V6:
        return [(KernelRouteKey(family, everything, IPV6_METRIC, MAIN_TABLE), via)]
    direct = KernelRoute(RTN_UNICAST, index, scope=RT_SCOPE_LINK, protocol=RTPROT_BOOT)
    return [
        (KernelRouteKey(family, Net.host(gateway), 0, MAIN_TABLE), direct),
        (KernelRouteKey(family, everything, 0, MAIN_TABLE), via),
    ]


def _all(netlink: NetlinkSocket, requests: Sequence[Request]) -> None:
    refused = netlink.transact(requests)
    for refusal in refused.values():
        raise NetlinkError(refusal.errno, refusal.message or os.strerror(refusal.errno))


def write_sysctl(name: str, value: str, *, required: bool = False) -> None:
    """Write a setting of IPv6 in the network of the calling thread, if it is another one.

    One that is not required may stay where /proc/sys is read-only: its addresses are set without duplicate detection,
    and nobody on the node sends router advertisements.

    Raises:
        OSError: it is required.
    """
    path = PROC / name
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        if required:
            raise OSError(error.errno, f"{path} cannot be set to {value}: {error.strerror}") from None


# --- removing -----------------------------------------------------------------------------------------------


def remove(interface: str, alias: str) -> bool:
    """Remove the node's end, and by it the other one. False if there was none with this mark.

    Raises:
        OSError: the kernel refused.
    """
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as host:
        return remove_marked(host, interface, alias)


def remove_marked(host: NetlinkSocket, interface: str, alias: str) -> bool:
    link = find(host, interface)
    if link is None or link.alias != alias:
        return False
    return _delete(host, link.ifindex)


def _delete_by_name(host: NetlinkSocket, interface: str) -> None:
    link = find(host, interface)
    if link is not None:
        _delete(host, link.ifindex)


def _delete(host: NetlinkSocket, index: int) -> bool:
    refusal = host.transact([link_delete_request(index)]).get(0)
    if refusal and refusal.errno not in (errno.ENODEV, errno.EINVAL):
        raise NetlinkError(refusal.errno, str(refusal))
    return refusal is None


def remove_links(links: Iterable[NamedLink]) -> None:
    """Remove links that were seen just now; one that went meanwhile is no error.

    Raises:
        OSError: the kernel refused.
    """
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as host:
        for link in links:
            _delete(host, link.ifindex)


def find(netlink: NetlinkSocket, interface: str) -> NamedLink | None:
    try:
        return decode_named_link(netlink.ask(link_get_request(interface)))
    except NetlinkError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            return None
        raise


def marked() -> dict[str, NamedLink]:
    """All links of the node that carry a mark of ours, by mark; those that are unfinished are removed. Asked at the
    start only: it grows with the node.

    Raises:
        OSError: the kernel refused.
    """
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as host:
        links = list(map(decode_named_link, host.dump_all(link_dump_request())))
        for link in links:
            if link.is_unfinished:
                _delete(host, link.ifindex)
        return {link.alias: link for link in links if link.alias.startswith(MARK)}


# --- looking ------------------------------------------------------------------------------------------------


def differences(pair: Pair, namespace: int) -> list[str]:
    """What of the pair is not as it was made; the calling thread is in the workload's network afterwards.

    Raises:
        OSError: the kernel cannot be read.
    """
    found = []
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as host:
        link = find(host, pair.interface)
        if link is None or link.alias != pair.alias:
            found.append(f"the interface {pair.interface} of the node is gone")
        elif not link.up:
            found.append(f"the interface {pair.interface} of the node is down")
    enter(namespace)
    with contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as netlink:
        name = pair.container_interface
        link = find(netlink, name)
        if link is None:
            return [*found, f"the interface {name} of the container is gone"]
        if not link.up:
            found.append(f"the interface {name} of the container is down")
        if pair.mac and link.mac != pair.mac:
            found.append(f"the MAC address of {name} is {link.mac.hex(':')}, not {pair.mac.hex(':')}")
        present = addresses_of(netlink.dump_all(address_dump_request(link.ifindex)), link.ifindex)
        found += [f"{name} has lost the address {one}" for one in pair.addresses if one not in present]
        for family in sorted(pair.families):
            routes = dict(filter(None, map(decode_route, netlink.dump_all(route_dump_request(family, MAIN_TABLE)))))
            for key, route in _routes(family, link.ifindex):
                had = routes.get(key)
                if had is None or (had.interface, had.gateway) != (route.interface, route.gateway):
                    found.append(f"the container has lost its route to {key.destination}")
    return found


def _refused(what: str, error: OSError) -> CniError:
    return CniError(Code.KERNEL_REFUSED, f"{what}: {error.strerror or error}")
