"""Cases of VXLAN, IPIP and WireGuard: resources, and what the calculation makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from felixpy.calc.vtep import format_mac, vtep_mac
from felixpy.model.net import Family
from tests.underlay.vectors import Answer, elsewhere, same


def ask(case: dict[str, Any]) -> Iterator[Answer]:
    given, expect = case["given"], case["expect"]
    if "names" in given:
        for name in given["names"]:
            for key, family in (("v4", Family.V4), ("v6", Family.V6)):
                if key in expect[name]:
                    yield same(f"MAC of {name} {key}", expect[name][key], format_mac(vtep_mac(name, family)))
        return
    yield elsewhere("everything", "not calculated yet")
