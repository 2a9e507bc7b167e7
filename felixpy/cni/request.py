"""A call of a container runtime: environment and configuration, checked. Pure.

Invariant: what is not understood is refused with the field's name, never taken for a default; the order of ``CNI_ARGS``
means nothing. Field names are those of the specification (0.3.1 to 1.1) and of Calico's plugin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct, field

from felixpy.cni.errors import CniError, Code
from felixpy.model.invalid import InvalidResource
from felixpy.model.names import check_interface
from felixpy.model.net import FAMILIES, Family, Net, quote

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
IPAM_TYPES = ("felixpy-ipam", "calico-ipam", "host-local")
POD_CIDR_WORDS = {"usePodCidr": Family.V4, "usePodCidrIPv6": Family.V6}

MAX_MTU = 65535
_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,199}")
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_CONTAINER_INTERFACE = re.compile(r"[^/:\s]{1,15}")
_ARGUMENTS = frozenset(
    {"IgnoreUnknown", "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID"}
)


class Ipam(Struct, frozen=True):
    """Where the addresses come from. ``ranges``: of ``host-local``; empty: what this node was given.

    ``pools``: names or CIDRs per family, empty: any.
    """

    families: tuple[Family, ...] = (Family.V4,)
    ranges: tuple[Net, ...] = ()
    pools: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)


class Configuration(Struct, frozen=True):
    """What standard input says. ``mtu`` 0: the agent's. ``valid``: of GC, (container, interface) that live.

    ``floating``: whether pods may ask for floating addresses, as Calico's plugin has it (``feature_control``).
    """

    version: str
    network: str
    ipam: Ipam
    mtu: int = 0
    previous: Mapping[str, Any] | None = None
    addresses: tuple[Net, ...] = ()
    mac: bytes | None = None
    floating: bool = False
    valid: frozenset[tuple[str, str]] | None = None


class Call(Struct, frozen=True):
    """One call. ``container_id`` and what follows are empty where the command has none."""

    command: str
    configuration: Configuration
    container_id: str = ""
    container_interface: str = ""
    netns: str = ""
    namespace: str = ""
    pod: str = ""
    uid: str = ""

    @property
    def pod_name(self) -> str:
        """``namespace/name`` as the runtime says it; empty for a container that is no pod."""
        return f"{self.namespace}/{self.pod}" if self.pod else ""


def parse_call(environment: bytes, standard_input: bytes) -> Call:
    """Environment (``NAME=value`` with a zero behind each) and standard input of the plugin.

    Raises:
        CniError
    """
    variables = _variables(environment)
    command = variables.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_COMMAND={quote(command)} must be one of {', '.join(COMMANDS)}")
    written = _read_json(standard_input)
    if command == "DEL":  # the way out stays open, whatever has become of the configuration
        written = {name: written.get(name) for name in ("cniVersion", "name")}
        configuration = Configuration(str(written["cniVersion"] or VERSIONS[0]), str(written["name"] or ""), Ipam())
    else:
        configuration = parse_configuration(written, command)
    if command in ("GC", "STATUS", "VERSION"):
        return Call(command, configuration)
    arguments = _arguments(variables.get("CNI_ARGS", ""))
    return Call(
        command,
        configuration,
        _checked(_CONTAINER, variables.get("CNI_CONTAINERID", ""), "CNI_CONTAINERID"),
        _container_interface(variables.get("CNI_IFNAME", "")),
        variables.get("CNI_NETNS", ""),
        arguments.get("K8S_POD_NAMESPACE", ""),
        arguments.get("K8S_POD_NAME", ""),
        arguments.get("K8S_POD_UID", ""),
    )


def version_of(standard_input: bytes) -> str:
    """The version to answer an error in, whatever else is wrong."""
    try:
        version = _read_json(standard_input).get("cniVersion")
    except CniError:
        version = None
    return version if version in VERSIONS else "1.0.0"


def parse_configuration(written: Mapping[str, Any], command: str = "ADD") -> Configuration:
    """The network configuration.

    Raises:
        CniError
    """
    version = written.get("cniVersion")
    if version not in VERSIONS:
        reason = f"cniVersion {quote(version)} is not one of {', '.join(VERSIONS)}"
        raise CniError(Code.INCOMPATIBLE_VERSION, reason)
    since = _SINCE.get(command)
    if since and VERSIONS.index(version) < VERSIONS.index(since):
        raise CniError(
            Code.INCOMPATIBLE_VERSION, f"{command} needs cniVersion {since}; the configuration has {version}"
        )
    network = _text(written.get("name"), "name")
    if not _NETWORK.fullmatch(network):
        raise CniError(Code.BAD_CONFIGURATION, f"name {quote(network)}: letters, digits, '_', '.' and '-' only")
    runtime = _object(written.get("runtimeConfig"), "runtimeConfig")
    return Configuration(
        version=version,
        network=network,
        ipam=parse_ipam(_object(written.get("ipam"), "ipam")),
        mtu=_mtu(written.get("mtu")),
        previous=_object(written.get("prevResult"), "prevResult") or None,
        addresses=_requested(runtime.get("ips"), "runtimeConfig.ips"),
        mac=_mac(runtime.get("mac"), "runtimeConfig.mac"),
        floating=_floating(written.get("feature_control")),
        valid=_valid(written) if command == "GC" else None,
    )


def _floating(written: object) -> bool:
    """Other features of Calico's plugin are not of this one, and pods that ask for them are refused by name."""
    found = _object(written, "feature_control").get("floating_ips", False)
    if not isinstance(found, bool):
        raise CniError(Code.BAD_CONFIGURATION, "feature_control.floating_ips must be true or false")
    return found


def parse_ipam(written: Mapping[str, Any]) -> Ipam:
    """The section ``ipam``; an empty one stands for ``felixpy-ipam`` with IPv4.

    Raises:
        CniError
    """
    kind = written.get("type", IPAM_TYPES[0])
    if kind not in IPAM_TYPES:
        reason = f"ipam.type {quote(kind)} is not one of {', '.join(IPAM_TYPES)}; the agent itself gives the addresses"
        raise CniError(Code.BAD_CONFIGURATION, reason)
    if kind == "host-local":
        return _host_local(written)
    allowed = {"type", "assign_ipv4", "assign_ipv6", "ipv4_pools", "ipv6_pools"}
    _refuse_others(written, allowed, "ipam")
    families = tuple(
        family
        for family, name, default in ((Family.V4, "assign_ipv4", True), (Family.V6, "assign_ipv6", False))
        if _assign(written.get(name), default, f"ipam.{name}")
    )
    if not families:
        raise CniError(
            Code.BAD_CONFIGURATION, "ipam.assign_ipv4 and ipam.assign_ipv6 are both false: no family is left"
        )
    pools = {
        family: pool_names(written.get(f"ipv{family.version}_pools"), f"ipam.ipv{family.version}_pools")
        for family in FAMILIES
    }
    return Ipam(families, (), {family: names for family, names in pools.items() if names})


def pool_names(value: object, where: str) -> tuple[str, ...]:
    """Names or CIDRs of pools, as written in a configuration or an annotation.

    Raises:
        CniError
    """
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise CniError(Code.BAD_CONFIGURATION, f"{where} must be a list of names or CIDRs of pools")
    return tuple(value)


def _assign(value: object, default: bool, where: str) -> bool:
    """Calico knows ``"true"`` and ``"false"`` only and takes every other word for the default."""
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise CniError(Code.BAD_CONFIGURATION, f"{where}: {quote(value)} must be true or false")


def _host_local(written: Mapping[str, Any]) -> Ipam:
    _refuse_others(written, {"type", "subnet", "ranges"}, "ipam (host-local)")
    texts = [written["subnet"]] if "subnet" in written else []
    for index, some in enumerate(_list(written.get("ranges"), "ipam.ranges")):
        for at, one in enumerate(_list(some, f"ipam.ranges[{index}]")):
            where = f"ipam.ranges[{index}][{at}]"
            one = _object(one, where)
            _refuse_others(one, {"subnet"}, where)
            texts.append(one.get("subnet"))
    if not texts:
        raise CniError(
            Code.BAD_CONFIGURATION, "ipam (host-local) has no subnet and no ranges; write usePodCidr or a CIDR"
        )
    families: dict[Family, None] = {}
    ranges = []
    for text in texts:
        if isinstance(text, str) and text in POD_CIDR_WORDS:
            families[POD_CIDR_WORDS[text]] = None
            continue
        net = _net(text, "ipam subnet")
        ranges.append(net)
        families[net.family] = None
    if ranges and len(ranges) != len(texts):
        raise CniError(Code.BAD_CONFIGURATION, "ipam (host-local) mixes usePodCidr and CIDRs; write one of them")
    return Ipam(tuple(sorted(families)), tuple(ranges))


# --- the environment ----------------------------------------------------------------------------------------


def _variables(environment: bytes) -> dict[str, str]:
    found = {}
    for entry in environment.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals:
            found[name.decode(errors="replace")] = value.decode(errors="surrogateescape")
    return found


def _arguments(text: str) -> dict[str, str]:
    """``CNI_ARGS``: ``NAME=value;NAME=value`` in any order."""
    found = {}
    for entry in filter(None, text.split(";")):
        name, equals, value = entry.partition("=")
        if not equals:
            raise CniError(Code.BAD_ENVIRONMENT, f"CNI_ARGS: {quote(entry)} is not NAME=value")
        found[name] = value
    unknown = sorted(found.keys() - _ARGUMENTS)
    if unknown and found.get("IgnoreUnknown", "").lower() not in ("1", "true"):
        reason = f"CNI_ARGS: {quote(unknown[0])} is unknown; IgnoreUnknown=1 would leave it out"
        raise CniError(Code.BAD_ENVIRONMENT, reason)
    return found


def _checked(pattern: re.Pattern[str], value: str, name: str) -> str:
    if not pattern.fullmatch(value):
        reason = "is missing" if not value else f"{quote(value)} is not valid"
        raise CniError(Code.BAD_ENVIRONMENT, f"{name} {reason}")
    return value


def _container_interface(name: str) -> str:
    _checked(_CONTAINER_INTERFACE, name, "CNI_IFNAME")
    try:
        return check_interface(name, "CNI_IFNAME")
    except InvalidResource as error:
        raise CniError(Code.BAD_ENVIRONMENT, str(error)) from None


# --- standard input -----------------------------------------------------------------------------------------


def _read_json(data: bytes) -> Mapping[str, Any]:
    try:
        written = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CniError(Code.UNDECODABLE, f"standard input is not JSON: {error}") from None
    if not isinstance(written, dict):
        raise CniError(Code.UNDECODABLE, "standard input must be an object of JSON")
    return written


def _refuse_others(written: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for name in sorted(written.keys() - set(known)):
        raise CniError(Code.BAD_CONFIGURATION, f"{where}: the field {quote(name)} is not known to felixpy; take it out")


def _object(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CniError(Code.BAD_CONFIGURATION, f"{where} must be an object")
    return value


def _list(value: object, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise CniError(Code.BAD_CONFIGURATION, f"{where} must be a list")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise CniError(Code.BAD_CONFIGURATION, f"{where} must be a text and not empty")
    return value


def _net(value: object, where: str) -> Net:
    try:
        return Net.parse(_text(value, where))
    except ValueError as error:
        raise CniError(Code.BAD_CONFIGURATION, f"{where}: {error}") from None


def _mtu(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not (value == 0 or 68 <= value <= MAX_MTU):
        raise CniError(Code.BAD_CONFIGURATION, f"mtu {quote(value)} must be a whole number from 68 to {MAX_MTU}, or 0")
    return value


def _requested(value: object, where: str) -> tuple[Net, ...]:
    """Addresses that the runtime asks for; a prefix length is written and means nothing here."""
    found = []
    for text in _list(value, where):
        try:
            found.append(Net.host(Net.parse_interface(_text(text, where)).packed))
        except ValueError as error:
            raise CniError(Code.BAD_CONFIGURATION, f"{where}: {error}") from None
    return tuple(found)


def _mac(value: object, where: str) -> bytes | None:
    if value is None:
        return None
    text = _text(value, where)
    if not re.fullmatch(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}", text) or int(text[:2], 16) & 1:
        raise CniError(Code.BAD_CONFIGURATION, f"{where}: {quote(text)} is not the MAC address of one interface")
    return bytes.fromhex(text.replace(":", ""))


VALID_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""The key of the specification, and the one that libcni sent before 1.2.3."""


def _valid(written: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """With an empty list, which libcni writes as null, everything is removed; without one nothing can be said of what
    lives, and ``cnitool gc`` sends none.
    """
    name = next((key for key in VALID_ATTACHMENTS if key in written), "")
    if not name:
        reason = f"GC without {VALID_ATTACHMENTS[0]}: nobody says which containers live, so nothing is removed"
        raise CniError(Code.BAD_CONFIGURATION, reason)
    found = set()
    for one in [] if written[name] is None else _list(written[name], name):
        entry = _object(one, name)
        found.add(
            (_text(entry.get("containerID"), f"{name} containerID"), _text(entry.get("ifname"), f"{name} ifname"))
        )
    return frozenset(found)
