"""CNI: families, pools, garbage and status, asked of the functions that the server itself uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from felixpy.cni.attachments import Attachment
from felixpy.cni.calls import status_error, unnamed
from felixpy.cni.errors import CniError
from felixpy.cni.programming import NodeState
from felixpy.cni.request import parse_ipam
from felixpy.cni.wishes import wishes_of
from felixpy.model.net import FAMILIES
from tests.underlay.vectors import Answer, elsewhere, same

LIFE = "tests/cni/test_life.py"


def ask(case: dict[str, Any]) -> Iterator[Answer]:
    """Answers to a case of ``cni.json``."""
    given, expected = case["given"], case["expect"]
    if "cases" in given:
        for written, wanted in zip(given["cases"], expected["families"], strict=True):
            yield same(f"families of {written}", _without_reason(wanted), _families(written))
    elif "conf" in given:
        yield same("pools", expected["pools"], _pools(given))
    elif "existing" in given:
        yield elsewhere("the route of the other family", f"{LIFE}: packets in both families after each ADD")
    elif "allocated" in given:
        yield from _garbage(given, expected)
    elif "agent" in given:
        yield same("results", expected["results"][:1] + expected["results"][2:], _status())
        yield elsewhere("an agent that is not there", f"{LIFE}: test_the_agent_is_away")
    else:
        yield elsewhere("DEL", f"{LIFE}: twice, without a namespace, of what nobody knows")


def _without_reason(wanted: Any) -> Any:
    return "error" if isinstance(wanted, str) else wanted


def _families(written: dict[str, Any]) -> Any:
    try:
        return [family.version for family in parse_ipam({"type": "calico-ipam", **written}).families]
    except CniError:
        return "error"


def _pools(given: dict[str, Any]) -> list[str]:
    pools = {**parse_ipam(given["conf"]).pools, **wishes_of(given["pod"], given["namespace"]).pools}
    return [name for family in FAMILIES for name in pools.get(family, ())]


def _garbage(given: dict[str, Any], expected: dict[str, Any]) -> Iterator[Answer]:
    allocated = [tuple(text.split("/")) for text in given["allocated"]]
    attachments = [
        Attachment("", "", "", container, "cali1", (), container_interface=interface, network="net")
        for container, interface in allocated
    ]
    attachments.append(Attachment("", "", "", "c3", "cali3", (), network="another"))
    valid = {(one["containerID"], one["ifname"]) for one in given["cni.dev/valid-attachments"]}
    released = [f"{one.container_id}/{one.container_interface}" for one in unnamed(attachments, "net", valid)]
    yield same("released", expected["released"], released)
    yield elsewhere("links and addresses", f"{LIFE}: test_garbage_collection")


def _status() -> list[str]:
    """In sync; no free address; degraded."""
    states = [(NodeState(), ""), (NodeState(), "no address is free"), (NodeState(limited="IPv6 is not programmed"), "")]
    errors = [status_error(state, exhausted) for state, exhausted in states]
    return ["exit 0, empty output" if error is None else f"error {int(error.code)}" for error in errors]
