"""Types of settings, and their one way from text to value.

A parser takes text that is not empty and either gives a legal value or raises ``ValueError`` with a reason; what is
legal stands in ``expected``, which is also what the documentation prints.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from msgspec import Struct

from felixpy.model.invalid import InvalidResource
from felixpy.model.names import check_name
from felixpy.model.net import Family, Net, family_of, parse_address

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


MAX_FAILSAFES, MAX_INTERFACE_PREFIXES, MAX_PREFIXES = 1000, 100, 10_000
"""Entries of lists: packets pass a rule for each of the first two, and each of the last is a member of a set."""


class EndpointToHostAction(StrEnum):
    DROP = "Drop"
    ACCEPT = "Accept"
    RETURN = "Return"
    REJECT = "Reject"


class EndpointWithoutProfileAction(StrEnum):
    ALLOW = "Allow"
    DENY = "Deny"


class DenyAction(StrEnum):
    DROP = "DROP"
    REJECT = "REJECT"


class ServiceLoopPrevention(StrEnum):
    DROP = "Drop"
    REJECT = "Reject"
    DISABLED = "Disabled"


class MqttPeers(StrEnum):
    AUTO = "Auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"
    HUB = "Hub"


class AllowAction(StrEnum):
    ACCEPT = "ACCEPT"
    RETURN = "RETURN"


class NATOutgoingExclusions(StrEnum):
    IP_POOLS_ONLY = "IPPoolsOnly"
    IP_POOLS_AND_HOST_IPS = "IPPoolsAndHostIPs"


class MasqAgentSources(StrEnum):
    ANY = "Any"
    POOLS = "Pools"


class NFTablesMode(StrEnum):
    AUTO = "Auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class IptablesBackend(StrEnum):
    AUTO = "Auto"
    LEGACY = "Legacy"
    NFT = "NFT"


class ChainInsertMode(StrEnum):
    INSERT = "insert"
    APPEND = "append"


class Failsafe(NamedTuple):
    """A port of the node that no policy closes, from or to ``net`` only if not None."""

    protocol: int
    port: int
    net: Net | None = None

    def is_of(self, family: Family) -> bool:
        return self.net is None or self.net.family is family

    def __str__(self) -> str:
        name = _FAILSAFE_NAMES[self.protocol]
        if self.net is None:
            return f"{name}:{self.port}"
        return f"{name}:[{self.net}]:{self.port}" if self.net.family is Family.V6 else f"{name}:{self.net}:{self.port}"


class Rate(NamedTuple):
    """So many packets per so many seconds."""

    packets: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.packets}/{_RATE_UNITS[self.seconds]}"


class DatastoreType(StrEnum):
    """Who delivers resources. ``AUTO``: a broker if one is named, else the cluster that we are a pod of, else files."""

    AUTO = "Auto"
    KUBERNETES = "kubernetes"
    MQTT = "mqtt"
    DIRECTORY = "directory"


class ProgramClusterRoutes(StrEnum):
    ENABLED = "Enabled"
    IPIP = "EnabledIPIPOnly"
    NO_ENCAPSULATION = "EnabledNoEncapOnly"
    DISABLED = "Disabled"


class TableRange(NamedTuple):
    """Numbers of routing tables, both ends among them."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


class IPAMType(StrEnum):
    POD_CIDR = "PodCIDR"
    POOLS = "Pools"
    CALICO = "Calico"


class PortRange(NamedTuple):
    """Inclusive range of ports."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


class Parser(Struct, Generic[T], frozen=True):
    """``zero`` is the value of the word ``none``, in a tuple; an empty tuple if the setting has no such value."""

    expected: str
    parse: Callable[[str], T]
    zero: tuple[T, ...] = ()


_TRUE = frozenset({"true", "1", "yes", "y", "t"})
_FALSE = frozenset({"false", "0", "no", "n", "f"})


def _parse_boolean(text: str) -> bool:
    word = text.lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("is neither true nor false")
    return word in _TRUE


BOOLEAN = Parser("`true` or `false`", _parse_boolean, (False,))
OPTIONAL_BOOLEAN: Parser[bool | None] = Parser("`true` or `false`", _parse_boolean, (None,))


def switch(on: str, off: str) -> Parser[bool]:
    """A boolean with words of its own."""

    def parse(text: str) -> bool:
        if text.lower() not in (on.lower(), off.lower()):
            raise ValueError("is not one of the legal words")
        return text.lower() == on.lower()

    return Parser(f"`{on}` or `{off}`", parse)


def choice(legal: type[E], also: Mapping[str, E] | None = None) -> Parser[E]:
    """One of the words of an enum in any case; ``also`` maps further words to them."""
    words = {str(value): value for value in legal} | dict(also or {})
    lower = {word.lower(): value for word, value in words.items()}

    def parse(text: str) -> E:
        if text.lower() not in lower:
            raise ValueError("is not one of the legal words")
        return lower[text.lower()]

    return Parser(_listing(list(words)), parse)


def word(*legal: str, zero: tuple[str, ...] = ()) -> Parser[str]:
    """One of some words in any case, as written here."""
    lower = {value.lower(): value for value in legal}

    def parse(text: str) -> str:
        if text.lower() not in lower:
            raise ValueError("is not one of the legal words")
        return lower[text.lower()]

    return Parser(_listing(list(legal)), parse, zero)


def _listing(words: list[str]) -> str:
    quoted = [f"`{word}`" for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else quoted[0]


def integer(least: int, most: int) -> Parser[int]:
    """A whole number in a range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError("is not a whole number")
        if not least <= int(text) <= most:
            raise ValueError("is out of range")
        return int(text)

    return Parser(f"a whole number from {least} to {most}", parse, (0,) if least <= 0 <= most else ())


PORT = integer(0, 65535)

# linux/rtnetlink.h, iproute2's rt_protos, FRR (193-197), Calico (80). Routes with our number are ours to delete.
_TAKEN_PROTOCOLS = frozenset({1, 2, 3, 4, *range(8, 19), 42, 80, 84, 99, *range(186, 190), *range(192, 198)})


def _parse_route_protocol(text: str) -> int:
    number = integer(1, 255).parse(text)
    if number in _TAKEN_PROTOCOLS:
        raise ValueError("is the number of another routing program, whose routes would be deleted")
    return number


ROUTE_PROTOCOL = Parser("a number from 1 to 255 that no other program uses, such as 222", _parse_route_protocol)

_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"(?:[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})"
_PART = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds of a Go duration (``1m30s``) or of a plain number of seconds (``90``, ``0.5``).

    Raises:
        ValueError
    """
    if re.fullmatch(_NUMBER, text):
        return float(text)
    if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
        raise ValueError("is not a duration")
    return math.fsum(float(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(text))


def duration(least: float = 0.0, most: float = 1e9) -> Parser[float]:
    """Seconds, as a number or a Go duration."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if not least <= seconds <= most:
            raise ValueError("is out of range")
        return seconds

    floor = "" if not least else f" of at least {least:g} s"
    expected = f"a duration{floor} like `90s` or `1m30s`, or seconds like `90`"
    return Parser(expected, parse, (0.0,) if not least else ())


def whole_seconds(most: int) -> Parser[int]:
    """As ``duration``, for what counts in whole seconds."""
    seconds = duration(0.0, float(most))
    return Parser(seconds.expected, lambda text: round(seconds.parse(text)), (0,))


def _parse_port_range(text: str) -> PortRange | None:
    first, colon, last = text.partition(":")
    bounds = [int(part) for part in (first, last or first) if re.fullmatch("[0-9]{1,5}", part)]
    if len(bounds) != 2 or (colon and not last):
        raise ValueError("is not a range of ports")
    if not 1 <= bounds[0] <= bounds[1] <= 65535:
        raise ValueError("is out of range, or its ends are swapped")
    return PortRange(*bounds)


PORT_RANGE: Parser[PortRange | None] = Parser("`first:last`, ports from 1 to 65535", _parse_port_range, (None,))


_FAILSAFE_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_FAILSAFE_NAMES = {number: name for name, number in _FAILSAFE_PROTOCOLS.items()}
_RATE_UNITS = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}
_RATE_SECONDS = {name: seconds for seconds, name in _RATE_UNITS.items()}


def _parse_failsafe(text: str) -> Failsafe:
    start, _, port = text.rpartition(":")
    protocol, _, net = start.partition(":")
    if protocol.lower() not in _FAILSAFE_PROTOCOLS:
        if start:
            raise ValueError(f"has the protocol {protocol!r}, which is none of tcp, udp, sctp")
        protocol = "tcp"  # a bare number, as in Felix
    number = _FAILSAFE_PROTOCOLS[protocol.lower()]
    return Failsafe(number, integer(1, 65535).parse(port), Net.parse(net.strip("[]")) if net else None)


def _parse_failsafes(text: str) -> tuple[Failsafe, ...]:
    return tuple(dict.fromkeys(map(_parse_failsafe, _items(text, MAX_FAILSAFES))))


FAILSAFES: Parser[tuple[Failsafe, ...]] = Parser(
    f"`protocol:port` or `protocol:CIDR:port`, separated by commas, at most {MAX_FAILSAFES}; an IPv6 CIDR in brackets",
    _parse_failsafes,
    ((),),
)


def _parse_rate(text: str) -> Rate | None:
    packets, _, unit = text.partition("/")
    if unit not in _RATE_SECONDS:
        raise ValueError("is not a number per second, minute, hour or day")
    return Rate(integer(1, 10000).parse(packets), _RATE_SECONDS[unit])


RATE: Parser[Rate | None] = Parser("a rate like `100/minute` (second, minute, hour, day)", _parse_rate, (None,))

LEAST_MARK_BITS = 9


def _parse_mark_mask(text: str) -> int:
    mask = int(text, 0) if re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}", text) else 0
    if mask > 0xFFFFFFFF or "1" * LEAST_MARK_BITS not in f"{mask:b}":
        raise ValueError(f"is not a mask with {LEAST_MARK_BITS} bits side by side")
    return mask


MARK_MASK = Parser(
    f"a mask of 32 bits like `0xffff0000`, with at least {LEAST_MARK_BITS} bits side by side", _parse_mark_mask
)


def address(family: Family) -> Parser[bytes | None]:
    """One address of one family."""

    def parse(text: str) -> bytes | None:
        packed = parse_address(text)
        if family_of(packed) is not family:
            raise ValueError(f"is not an {family} address")
        return packed

    return Parser(f"an {family} address", parse, (None,))


def _parse_mac(text: str) -> bytes | None:
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}", text):
        raise ValueError("is not a MAC address")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise ValueError("is not the MAC address of one interface")
    return mac


MAC: Parser[bytes | None] = Parser("a MAC address like `66:f9:37:c3:7e:94`", _parse_mac, (None,))


def _parse_prefixes(text: str) -> tuple[Net, ...]:
    return tuple(dict.fromkeys(Net.parse(item) for item in _items(text, MAX_PREFIXES)))


PREFIXES: Parser[tuple[Net, ...]] = Parser(
    f"CIDRs or addresses, separated by commas, at most {MAX_PREFIXES:,}", _parse_prefixes, ((),)
)


def _items(text: str, most: int) -> list[str]:
    found = [item.strip() for item in text.split(",") if item.strip()]
    if len(found) > most:
        raise ValueError(f"has {len(found)} entries, and may have {most}")
    return found


def _parse_interface_prefixes(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(_items(text, MAX_INTERFACE_PREFIXES)))
    if not found or not all(re.fullmatch(r"[A-Za-z0-9_.-]{1,14}", item) for item in found):
        raise ValueError("holds something that no interface name starts with")
    return found


INTERFACE_PREFIXES = Parser(
    f"prefixes of interface names, at most 14 characters each, separated by commas, at most {MAX_INTERFACE_PREFIXES}",
    _parse_interface_prefixes,
)


def _parse_interface_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", text) or text in (".", ".."):
        raise ValueError("is no name of an interface")
    return text


INTERFACE_NAME = Parser("a name of an interface, at most 15 characters", _parse_interface_name)

MAX_TABLE_RANGES = 100
_KERNEL_TABLES = range(253, 256)  # default, main, local


def _parse_table_ranges(text: str) -> tuple[TableRange, ...]:
    found = []
    for item in _items(text, MAX_TABLE_RANGES):
        match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", item)
        if match is None:
            raise ValueError("is not a list of ranges")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= 0xFFFFFFFF:
            raise ValueError("is out of range, or its ends are swapped")
        found.append(TableRange(first, last))
    if not found:
        raise ValueError("is not a list of ranges")
    return tuple(found)


TABLE_RANGES = Parser("ranges of numbers like `1-250`, separated by commas", _parse_table_ranges)


def tables_of(ranges: tuple[TableRange, ...]) -> Iterator[int]:
    """Numbers of tables that may be taken, without the kernel's own."""
    for first, last in ranges:
        yield from (number for number in range(first, last + 1) if number not in _KERNEL_TABLES)


def pattern(regex: str, expected: str, *, zero: bool = True) -> Parser[str]:
    """Text that fits a regular expression as a whole."""
    compiled = re.compile(regex)

    def parse(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError("does not have that form")
        return text

    return Parser(expected, parse, ("",) if zero else ())


TEXT = pattern(r"[^\x00-\x1f\x7f]+", "text on one line")
SECRET = Parser("text", str)

_HOST_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MAX_HOST = 253


def _parse_host(text: str) -> str:
    """What a resolver takes without an error of its own: it raises others than OSError for labels that cannot be."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        labels = text.removesuffix(".").split(".")  # with underscores, as networks of containers have them
        if len(text) > _MAX_HOST or not all(_HOST_LABEL.fullmatch(label) for label in labels):
            raise ValueError("is neither an address nor a DNS name") from None
    return text


HOST = Parser("an address or a DNS name", _parse_host, ("",))


def _parse_path(text: str) -> Path:
    if "\x00" in text:
        raise ValueError("holds a zero byte")
    return Path(text)


PATH = Parser("a path", _parse_path)
OPTIONAL_PATH: Parser[Path | None] = Parser("a path", _parse_path, (None,))


def _parse_node_name(text: str) -> str:
    try:
        return check_name(text.lower(), "")  # Calico writes host names in lower case, too
    except InvalidResource as error:
        raise ValueError(error.reason) from None


NODE_NAME = Parser("a DNS name", _parse_node_name)
TOPIC = pattern(r"[^+#$/\x00-\x1f\x7f][^+#/\x00-\x1f\x7f]*(?:/[^+#/\x00-\x1f\x7f]+)*", "an MQTT topic", zero=False)
