"""IPv6 NAT targets in the kernel's binary form (``struct nf_nat_range`` and its second one, linux/netfilter/nf_nat.h).

From iptables 1.8.9 on, the NAT targets of both families live in one extension library, and libxtables registers only
those of the family that loads it first: a process that has used IPv4 MASQUERADE has no IPv6 one. So ``legacy_tables``
takes these targets from here. Must never grow beyond what ``render`` can say.
"""

from __future__ import annotations

import struct

from felixpy.model.net import parse_address

TARGETS = {"MASQUERADE": 0, "SNAT": 1, "DNAT": 2}
"""Revision of each target: the one that the tools write and print. DNAT's has a second range, with a base port."""

_MAP_ADDRESSES, _PORTS_GIVEN, _RANDOM_FULLY = 1, 2, 16
_ENTRY_TARGET = struct.Struct("=H29sB")  # struct xt_entry_target: size, name, revision
_SECOND_RANGE_BYTES = 48
_NAT_RANGE = struct.Struct("=I16s16s2s2s")  # flags, lowest and highest address, lowest and highest port (big endian)


def encode(name: str, options: dict[str, str]) -> bytes:
    """A target from its options as ``render`` writes them: ``{"--to-source": "[fd00::1]:1-9", "--random-fully": ""}``.

    Raises:
        ValueError: an option that is not known.
    """
    flags, address, first, last = 0, bytes(16), 0, 0
    for option, value in options.items():
        ports = ""
        if option == "--random-fully":
            flags |= _RANDOM_FULLY
        elif option == "--to-ports":
            ports = value
        elif option in ("--to-source", "--to-destination"):
            text, _, ports = value.removeprefix("[").partition("]:") if value.startswith("[") else (value, "", "")
            flags |= _MAP_ADDRESSES
            address = parse_address(text)
        else:
            raise ValueError(f"the option {option} of {name} is not known")
        if ports:
            flags |= _PORTS_GIVEN
            low, _, high = ports.partition("-")
            first, last = int(low), int(high or low)
    data = _NAT_RANGE.pack(flags, address, address, first.to_bytes(2, "big"), last.to_bytes(2, "big"))
    if name == "DNAT":
        data += bytes(_SECOND_RANGE_BYTES - len(data))  # no base port, and up to a multiple of eight bytes
    return _ENTRY_TARGET.pack(_ENTRY_TARGET.size + len(data), name.encode(), TARGETS[name]) + data
