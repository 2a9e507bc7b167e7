"""Tunnel devices, their addresses, and the forwarding database of VXLAN devices.

Numbers are from linux/if_link.h, linux/if_addr.h, linux/neighbour.h. pyroute2 is the oracle of these in the tests.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from felixpy.model.net import Family, Net
from felixpy.netlink.columns import by_length, together, tuples
from felixpy.netlink.message import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Request,
    attribute,
    attributes,
    nested,
    text_attribute,
    text_of,
)
from felixpy.netlink.rtnetlink import (
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_LINKINFO,
    IFLA_MTU,
    NDA_DST,
    NDA_LLADDR,
    NUD_PERMANENT,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
)

IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFLA_VXLAN_ID, IFLA_VXLAN_GROUP, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 2, 3, 4, 7
IFLA_VXLAN_PORT, IFLA_VXLAN_GROUP6, IFLA_VXLAN_LOCAL6, IFLA_VXLAN_EXTERNAL = 15, 16, 17, 25
IFLA_VXLAN_PROXY, IFLA_VXLAN_RSC, IFLA_VXLAN_L2MISS, IFLA_VXLAN_L3MISS = 11, 12, 13, 14
IFLA_VXLAN_REMCSUM_TX, IFLA_VXLAN_REMCSUM_RX, IFLA_VXLAN_GBP, IFLA_VXLAN_GPE = 21, 22, 23, 27
# Of a device that is not only for known peers in the plain wire format: told where they are set, or told as 0 or 1.
_VXLAN_OTHERS = (IFLA_VXLAN_GROUP, IFLA_VXLAN_GROUP6, IFLA_VXLAN_GBP, IFLA_VXLAN_GPE)
_VXLAN_SWITCHES = (
    IFLA_VXLAN_LEARNING,
    IFLA_VXLAN_EXTERNAL,
    IFLA_VXLAN_PROXY,
    IFLA_VXLAN_RSC,
    IFLA_VXLAN_L2MISS,
    IFLA_VXLAN_L3MISS,
    IFLA_VXLAN_REMCSUM_TX,
    IFLA_VXLAN_REMCSUM_RX,
)
IFLA_IPTUN_LOCAL, IFLA_IPTUN_REMOTE, IFLA_IPTUN_PMTUDISC, IFLA_IPTUN_EXTERNAL = 2, 3, 10, 19
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_PROTO = 1, 2, 8, 11
IFA_F_NODAD = 0x02
RT_SCOPE_LINK = 253
AF_BRIDGE = 7
NTF_SELF = 0x02
NDA_IFINDEX = 8

_LINK = struct.Struct("=BBHiII")
_ADDRESS = struct.Struct("=BBBBI")
_NEIGHBOUR = struct.Struct("=BBHiHBB")
_U32 = struct.Struct("=I")


class KernelDevice(NamedTuple):
    """A tunnel device as the kernel has it; what does not belong to its kind is 0 or empty.

    ``plain``: neither learning, nor of a group or a remote end, nor with external tunnel data. ``link`` is an index.
    ``mark``, the public ``key`` and ``threaded`` (None: nobody can tell) are WireGuard's, and no link message has them.
    """

    kind: str
    mtu: int
    up: bool
    alias: str
    vni: int = 0
    port: int = 0
    local: bytes = b""
    link: int = 0
    mac: bytes = b""
    plain: bool = True
    mark: int = 0
    key: bytes = b""
    threaded: bool | None = None


class KernelAddress(NamedTuple):
    """An address on an interface, by index; ``protocol`` is 0 if nobody signed it (IFA_PROTO, Linux 5.18)."""

    interface: int
    net: Net
    protocol: int = 0


class KernelFdb(NamedTuple):
    """A permanent entry of a VXLAN device's forwarding database; ``destination`` is where the MAC is behind."""

    interface: int
    mac: bytes
    destination: bytes


def vxlan_create_request(name: str, device: KernelDevice) -> Request:
    """Make a VXLAN device, up."""
    data = [
        attribute(IFLA_VXLAN_ID, _U32.pack(device.vni)),
        *_vxlan_way(device),
        attribute(IFLA_VXLAN_PORT, device.port.to_bytes(2, "big")),
    ]
    return Request(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        b"".join(
            (
                _LINK.pack(0, 0, 0, 0, IFF_UP, IFF_UP),
                text_attribute(IFLA_IFNAME, name),
                attribute(IFLA_MTU, _U32.pack(device.mtu)),
                attribute(IFLA_ADDRESS, device.mac),
                nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"vxlan"), nested(IFLA_INFO_DATA, *data)),
            )
        ),
    )


def vxlan_change_request(index: int, device: KernelDevice) -> Request:
    """Give a device that stands another local address or parent; it keeps its FDB, neighbours and routes.

    The message must not have the port: the kernel refuses that even where it is the same.
    """
    data = nested(IFLA_INFO_DATA, *_vxlan_way(device))
    info = nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"vxlan"), data)
    return Request(RTM_NEWLINK, 0, _LINK.pack(0, 0, 0, index, 0, 0) + info)


def _vxlan_way(device: KernelDevice) -> list[bytes]:
    local = IFLA_VXLAN_LOCAL if len(device.local) == 4 else IFLA_VXLAN_LOCAL6
    parts = [attribute(local, device.local), attribute(IFLA_VXLAN_LEARNING, b"\0")]
    if device.link:
        parts.append(attribute(IFLA_VXLAN_LINK, _U32.pack(device.link)))
    return parts


def ipip_create_request(name: str, device: KernelDevice) -> Request:
    """Make an IPIP device with an outer source and without another end, up."""
    parts = (
        _LINK.pack(0, 0, 0, 0, IFF_UP, IFF_UP),
        text_attribute(IFLA_IFNAME, name),
        attribute(IFLA_MTU, _U32.pack(device.mtu)),
        _ipip_ends(device),
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, b"".join(parts))


def ipip_change_request(index: int, device: KernelDevice) -> Request:
    """Give a device that stands another outer source."""
    return Request(RTM_NEWLINK, 0, _LINK.pack(0, 0, 0, index, 0, 0) + _ipip_ends(device))


def _ipip_ends(device: KernelDevice) -> bytes:
    """As ``tunl0`` in all else: packets around others may be fragmented where these may be, and no more."""
    data = attribute(IFLA_IPTUN_LOCAL, device.local), attribute(IFLA_IPTUN_PMTUDISC, b"\0")
    return nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"ipip"), nested(IFLA_INFO_DATA, *data))


def wireguard_create_request(name: str, mtu: int) -> Request:
    """Make a WireGuard device, down: its port is opened when it goes up."""
    info = nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"wireguard"))
    parts = (
        _LINK.pack(0, 0, 0, 0, 0, 0),
        text_attribute(IFLA_IFNAME, name),
        attribute(IFLA_MTU, _U32.pack(mtu)),
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, b"".join((*parts, info)))


def device_kind_dump_request(kind: str) -> Request:
    """Dump the links of one kind; the kernel filters."""
    info = nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, kind.encode()))
    return Request(RTM_GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0, 0) + info)


def device_settings_request(
    index: int, *, mtu: int = 0, mac: bytes = b"", alias: str = "", up: bool = False
) -> Request:
    """Set what any device has: MTU, MAC, alias, up; 0 and empty leave it as it is."""
    flags = IFF_UP if up else 0
    parts = [_LINK.pack(0, 0, 0, index, flags, flags)]
    if mtu:
        parts.append(attribute(IFLA_MTU, _U32.pack(mtu)))
    if mac:
        parts.append(attribute(IFLA_ADDRESS, mac))
    if alias:
        parts.append(attribute(IFLA_IFALIAS, alias.encode()))
    return Request(RTM_NEWLINK, 0, b"".join(parts))


def device_unsign_request(index: int) -> Request:
    """Take a device's alias away."""
    return Request(RTM_NEWLINK, 0, _LINK.pack(0, 0, 0, index, 0, 0) + attribute(IFLA_IFALIAS, b""))


def device_delete_request(index: int) -> Request:
    return Request(RTM_DELLINK, 0, _LINK.pack(0, 0, 0, index, 0, 0))


def device_query(name: str) -> Request:
    """Ask for one link by name; ENODEV if there is none."""
    return Request(RTM_GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0, 0) + text_attribute(IFLA_IFNAME, name))


def decode_device(message: Message) -> KernelDevice:
    """The tunnel device that a link message speaks of; of another kind, its kind alone."""
    flags = _LINK.unpack_from(message.payload)[4]
    found = dict(attributes(message.payload, _LINK.size))
    info = dict(attributes(found.get(IFLA_LINKINFO, b"")))
    kind = text_of(info.get(IFLA_INFO_KIND, b""))
    data = dict(attributes(info.get(IFLA_INFO_DATA, b"")))
    mtu = _U32.unpack(found[IFLA_MTU])[0] if IFLA_MTU in found else 0
    alias = text_of(found.get(IFLA_IFALIAS, b""))
    device = KernelDevice(kind, mtu, bool(flags & IFF_UP), alias)
    if kind == "vxlan":
        strange = not data.keys().isdisjoint(_VXLAN_OTHERS) or any(any(data.get(one, b"")) for one in _VXLAN_SWITCHES)
        return device._replace(
            vni=_U32.unpack(data[IFLA_VXLAN_ID])[0] if IFLA_VXLAN_ID in data else 0,
            port=int.from_bytes(data.get(IFLA_VXLAN_PORT, b""), "big"),
            local=data.get(IFLA_VXLAN_LOCAL) or data.get(IFLA_VXLAN_LOCAL6, b""),
            link=_U32.unpack(data[IFLA_VXLAN_LINK])[0] if IFLA_VXLAN_LINK in data else 0,
            mac=found.get(IFLA_ADDRESS, b""),
            plain=not strange,
        )
    if kind == "ipip":
        local = data.get(IFLA_IPTUN_LOCAL, b"")
        strange = any(data.get(IFLA_IPTUN_REMOTE, b"")) or IFLA_IPTUN_EXTERNAL in data
        return device._replace(local=local if any(local) else b"", plain=not strange)
    return device


def address_request(address: KernelAddress, *, delete: bool = False) -> Request:
    """Give an interface an address without duplicate detection, or take it away."""
    net = address.net
    header = _ADDRESS.pack(net.family, net.length, IFA_F_NODAD, 0, address.interface)
    parts = [header, attribute(IFA_LOCAL, net.packed), attribute(IFA_ADDRESS, net.packed)]
    if delete:
        return Request(RTM_DELADDR, 0, b"".join(parts))
    if address.protocol:
        parts.append(attribute(IFA_PROTO, bytes((address.protocol,))))
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, b"".join(parts))


def address_dump_request(index: int) -> Request:
    return Request(RTM_GETADDR, 0, _ADDRESS.pack(0, 0, 0, 0, index))


def decode_tunnel_address(message: Message) -> KernelAddress | None:
    """An address with who signed it; None for link-local ones, which the kernel makes, and other families."""
    family, length, _, scope, index = _ADDRESS.unpack_from(message.payload)
    if family not in (Family.V4, Family.V6) or scope == RT_SCOPE_LINK:
        return None
    found = dict(attributes(message.payload, _ADDRESS.size))
    packed = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS)
    return KernelAddress(index, Net(packed, length), found.get(IFA_PROTO, b"\0")[0]) if packed else None


def fdb_request(entry: KernelFdb, *, delete: bool = False) -> Request:
    """Say behind which node a MAC is, or forget it."""
    header = _NEIGHBOUR.pack(AF_BRIDGE, 0, 0, entry.interface, NUD_PERMANENT, NTF_SELF, 0)
    payload = header + attribute(NDA_LLADDR, entry.mac) + attribute(NDA_DST, entry.destination)
    if delete:
        return Request(RTM_DELNEIGH, 0, payload)
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, payload)


def fdb_dump_request(index: int) -> Request:
    """Dump the forwarding database of one device; the kernel filters (strict checking)."""
    header = _NEIGHBOUR.pack(AF_BRIDGE, 0, 0, 0, 0, 0, 0)
    return Request(RTM_GETNEIGH, 0, header + attribute(NDA_IFINDEX, _U32.pack(index)))


def decode_fdb_entries(messages: list[Message]) -> list[KernelFdb]:
    """Permanent entries with a destination, many in one go: there is one for each other node."""
    found: list[KernelFdb] = []
    for alike in by_length(messages).values():
        taken = together(_NEIGHBOUR, alike, frozenset()) if len(alike) > 1 else None
        if taken is None or not taken.found.keys() >= {NDA_LLADDR, NDA_DST}:
            found += filter(None, map(decode_fdb, alike))
            continue
        families, _, _, indexes, states, _, _ = taken.header
        macs, destinations = taken.found[NDA_LLADDR], taken.found[NDA_DST]
        entries = zip(families, states, tuples(KernelFdb, indexes, macs, destinations), strict=True)
        found += [
            entry
            for family, state, entry in entries
            if family == AF_BRIDGE and state & NUD_PERMANENT and any(entry.mac)
        ]
    return found


def decode_fdb(message: Message) -> KernelFdb | None:
    """A permanent entry with a destination; None for what a device has of itself."""
    family, _, _, index, state, _, _ = _NEIGHBOUR.unpack_from(message.payload)
    if family != AF_BRIDGE or not state & NUD_PERMANENT:
        return None
    found = dict(attributes(message.payload, _NEIGHBOUR.size))
    mac, destination = found.get(NDA_LLADDR, b""), found.get(NDA_DST, b"")
    return KernelFdb(index, mac, destination) if any(mac) and destination else None
