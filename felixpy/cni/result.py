"""What the plugin prints, in the words of each version of the specification. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from felixpy.cni.attachments import Attachment
from felixpy.cni.errors import CniError
from felixpy.model.net import Family, Net, format_address

HOST_MAC = b"\xee" * 6
GATEWAY_V4 = b"\xa9\xfe\x01\x01"
GATEWAY_V6 = bytes.fromhex("fe80000000000000eceeeefffeeeeeee")
"""What workloads have for a gateway: 169.254.1.1 by proxy ARP, and the link-local address of ``HOST_MAC``."""

GATEWAYS = {Family.V4: GATEWAY_V4, Family.V6: GATEWAY_V6}
_DEFAULT = {Family.V4: Net(bytes(4), 0), Family.V6: Net(bytes(16), 0)}


def add_result(version: str, attachment: Attachment, mtu: int) -> bytes:
    """The result of ADD: both ends of the pair, the addresses with their gateways, the default routes."""
    host: dict[str, Any] = {"name": attachment.interface, "mac": HOST_MAC.hex(":")}
    container: dict[str, Any] = {
        "name": attachment.container_interface,
        "mac": attachment.mac.hex(":") if attachment.mac else "",
        "sandbox": attachment.netns,
    }
    if version == "1.1.0" and mtu:
        host["mtu"] = container["mtu"] = mtu
    ips, routes = [], []
    for address in attachment.addresses:
        gateway = format_address(GATEWAYS[address.family])
        entry: dict[str, Any] = {"interface": 1, "address": str(address), "gateway": gateway}
        if version in ("0.3.1", "0.4.0"):
            entry["version"] = str(address.family.version)
        ips.append(entry)
        routes.append({"dst": str(_DEFAULT[address.family]), "gw": gateway})
    result = {"cniVersion": version, "interfaces": [host, container], "ips": ips, "routes": routes, "dns": {}}
    return msgspec.json.encode(result)


def error_result(version: str, error: CniError) -> bytes:
    return msgspec.json.encode({"cniVersion": version, "code": int(error.code), "msg": str(error)})


def addresses_in(result: Mapping[str, Any]) -> set[Net]:
    """The addresses of a result, of any version; what is no address is left out."""
    found = set()
    ips = result.get("ips")
    for entry in ips if isinstance(ips, list) else []:
        try:
            found.add(Net.parse_interface(str(entry["address"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found
