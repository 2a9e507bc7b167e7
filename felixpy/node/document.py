"""The Node that a machine should publish of itself, from its interfaces and Calico's variables. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from felixpy.model.net import FAMILIES, Family, Net
from felixpy.node.detection import DetectionError, Surroundings
from felixpy.node.own_address import AUTODETECT, SETTINGS, OwnAddress, check_found, own_address
from felixpy.node.router_id import chosen_router_id


class OwnNode(NamedTuple):
    """Addresses by family, what was wrong with a family, and the BGP router id (empty: none)."""

    addresses: Mapping[Family, OwnAddress]
    problems: Mapping[Family, str]
    router_id: str

    def document(self, name: str) -> dict[str, Any]:
        """As a v3 object."""
        bgp = {f"ipv{family.version}Address": str(one.net) for family, one in self.addresses.items() if one.net}
        return {
            "apiVersion": "projectcalico.org/v3",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {"bgp": bgp},
        }


def own_node(
    name: str, environment: Mapping[str, str], around: Surroundings, known: Mapping[Family, Net] | None = None
) -> OwnNode:
    """Decide for both families; IPv6 is detected too where nothing is set, and may be missing.

    Raises:
        DetectionError: there is no address at all, or a variable cannot be used.
    """
    addresses: dict[Family, OwnAddress] = {}
    problems: dict[Family, str] = {}
    for family in FAMILIES:
        setting, method = (
            environment.get(SETTINGS[family], ""),
            environment.get(f"{SETTINGS[family]}_AUTODETECTION_METHOD", ""),
        )
        wanted = setting or AUTODETECT
        try:
            addresses[family] = own_address(wanted, method, family, (known or {}).get(family), around)
        except DetectionError as error:
            if setting or method:
                raise
            problems[family] = str(error)
    check_found(addresses.values())
    four = addresses.get(Family.V4)
    try:
        router = chosen_router_id(
            environment.get("CALICO_ROUTER_ID", ""), name, four.net.packed if four and four.net else None
        )
    except ValueError as error:
        raise DetectionError(f"CALICO_ROUTER_ID: {error}") from None
    return OwnNode(addresses, problems, router)
