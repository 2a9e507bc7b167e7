"""Objects that stand for several: Kubernetes lists, and the operator's ``Installation`` with its ``ipPools``.

What comes out are single objects as a user would have written them; nothing is validated here beyond what the
conversion needs. ``Part.place`` lets an error name the field in the object that the user did write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from felixpy.model.invalid import InvalidResource
from felixpy.model.net import FAMILIES, Family, Net, quote
from felixpy.model.objects import InstallationPool, read_struct

INSTALLATION = "operator.tigera.io/v1"

# Defaults of the operator for its pools; an IPPool object itself defaults to no encapsulation and no NAT.
_ENCAPSULATION = {Family.V4: "IPIP", Family.V6: "None"}
_NAT_OUTGOING = {Family.V4: "Enabled", Family.V6: "Disabled"}
_DEFAULT_NAME = {family: f"default-ipv{family.version}-ippool" for family in FAMILIES}
_MODES = {  # encapsulation → ipipMode, vxlanMode
    "None": ("Never", "Never"),
    "IPIP": ("Always", "Never"),
    "IPIPCrossSubnet": ("CrossSubnet", "Never"),
    "VXLAN": ("Never", "Always"),
    "VXLANCrossSubnet": ("Never", "CrossSubnet"),
}
_RENAMED = {"metadata.name": "name", "spec.ipipMode": "encapsulation", "spec.vxlanMode": "encapsulation"}


class Part(NamedTuple):
    """A single object and where it stood: ``""``, ``items[0]`` or ``spec.calicoNetwork.ipPools[0]``.

    ``error`` is set, with its whole path, if the object could not be made.
    """

    place: str
    object: Any
    error: InvalidResource | None = None

    def field(self, field: str) -> str:
        """A field of the single object as a path in the object that it came from."""
        if self.place.startswith("spec."):
            field = _RENAMED.get(field, field.removeprefix("spec."))
        return ".".join(part for part in (self.place, field) if part)


def expand(obj: object) -> Iterator[Mapping[str, Any]]:
    """The single objects that ``obj`` stands for, itself if it is one.

    Raises:
        InvalidResource: a list without items, or a pool of an ``Installation`` that cannot be converted.
    """
    for part in expand_parts(obj):
        if part.error:
            raise part.error
        if not isinstance(part.object, Mapping):
            raise InvalidResource("is not an object", field=part.place)
        yield part.object


def expand_parts(obj: object) -> Iterator[Part]:
    """As ``expand``, with places, and with items of any type: judging them is the caller's business.

    Raises:
        InvalidResource: the object as a whole stands for nothing.
    """
    if isinstance(obj, list):
        yield from (Part(f"[{i}]", item) for i, item in enumerate(obj))
        return
    kind = obj.get("kind") if isinstance(obj, Mapping) else None
    if not isinstance(obj, Mapping) or not isinstance(kind, str):
        yield Part("", obj)
    elif kind == "Installation" and obj.get("apiVersion") == INSTALLATION:
        yield from _installation_pools(obj)
    elif kind.endswith("List"):
        items = obj.get("items")
        if not isinstance(items, list):
            raise InvalidResource("must be a list", field="items")
        # Items of a typed list may leave out what the list says (Kubernetes drops both on its own output).
        yield from (Part(f"items[{i}]", _typed_item(obj, kind, item)) for i, item in enumerate(items))
    else:
        yield Part("", obj)


def _typed_item(obj: Mapping[str, Any], kind: str, item: object) -> object:
    if kind == "List" or not isinstance(item, Mapping):
        return item
    return {"apiVersion": obj.get("apiVersion"), "kind": kind.removesuffix("List"), **item}


def _installation_pools(obj: Mapping[str, Any]) -> Iterator[Part]:
    spec = obj.get("spec")
    network = spec.get("calicoNetwork") if isinstance(spec, Mapping) else None
    place = "spec.calicoNetwork.ipPools"
    pools = network.get("ipPools") if isinstance(network, Mapping) else None
    if pools is None:
        return
    if not isinstance(pools, list):
        raise InvalidResource("must be a list", field=place)
    default_names = _uses_default_names(pools)
    for index, pool in enumerate(pools):
        yield _convert_pool(pool, f"{place}[{index}]", default_names)


def _uses_default_names(pools: list[Any]) -> bool:
    """One pool, or one of each family, has the default name; otherwise the operator names pools after their CIDRs."""
    if len(pools) != 2:
        return len(pools) == 1
    colons = [isinstance(pool, Mapping) and ":" in str(pool.get("cidr")) for pool in pools]
    return colons[0] != colons[1]


def _convert_pool(raw: object, place: str, default_name: bool) -> Part:
    try:
        pool, net = _read_pool(raw, place)
        name = pool.name or (_DEFAULT_NAME[net.family] if default_name else _name_after(net))
        return Part(place, _ip_pool(pool, name, net, place))
    except InvalidResource as error:
        return Part(place, None, error)


def _read_pool(raw: object, place: str) -> tuple[InstallationPool, Net]:
    pool = read_struct(raw, InstallationPool, place)
    if not pool.cidr:
        raise InvalidResource("is missing", field=f"{place}.cidr")
    try:
        return pool, Net.parse(pool.cidr)
    except ValueError as error:
        raise InvalidResource(str(error), field=f"{place}.cidr") from None


def _name_after(net: Net) -> str:
    """As the operator does it: ``10.48.0.0-21``, and IPv6 written out with dots."""
    if net.family is Family.V4:
        return str(net).replace("/", "-")
    groups = (net.packed[i : i + 2].hex() for i in range(0, 16, 2))
    return f"{'.'.join(groups)}-{net.length}"


def _ip_pool(pool: InstallationPool, name: str, net: Net, place: str) -> dict[str, Any]:
    encapsulation = pool.encapsulation or _ENCAPSULATION[net.family]
    if encapsulation not in _MODES:
        reason = f"{quote(encapsulation)} must be one of {', '.join(_MODES)}"
        raise InvalidResource(reason, field=f"{place}.encapsulation")
    nat_outgoing = pool.nat_outgoing or _NAT_OUTGOING[net.family]
    if nat_outgoing not in ("Enabled", "Disabled"):
        raise InvalidResource(f"{quote(nat_outgoing)} must be Enabled or Disabled", field=f"{place}.natOutgoing")
    ipip, vxlan = _MODES[encapsulation]
    spec: dict[str, Any] = {
        "cidr": str(net) if "/" in (pool.cidr or "") else pool.cidr,
        "natOutgoing": nat_outgoing == "Enabled",
        "ipipMode": ipip,
        "vxlanMode": vxlan,
        "nodeSelector": pool.node_selector or "all()",
    }
    optional = {
        "blockSize": pool.block_size,
        "namespaceSelector": pool.namespace_selector,
        "allowedUses": pool.allowed_uses,
        "disableBGPExport": pool.disable_bgp_export,
        "disabled": pool.disable_new_allocations,
        "assignmentMode": pool.assignment_mode,
    }
    spec.update({field: value for field, value in optional.items() if value is not None})
    return {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": name}, "spec": spec}
