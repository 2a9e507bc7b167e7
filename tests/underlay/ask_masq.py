"""Cases of ip-masq-agent's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from felixpy.config import masq_agent
from felixpy.config.values import parse_duration
from felixpy.model.net import Family
from tests.underlay.vectors import Answer, elsewhere, same


def ask(case: dict[str, Any]) -> Iterator[Answer]:
    given, expect = case["given"], case["expect"]
    if "felixpy" in expect:
        yield elsewhere("pools are always left out", "tests/behaviour/test_masq_agent.py sends packets")
        return
    texts = given.get("files", given.get("cases"))
    if texts is not None:
        wanted = expect.get("results", expect.get("result", expect.get("each", expect)))
        for index, text in enumerate(texts):
            each = wanted[index] if isinstance(wanted, list) else wanted
            one = text if isinstance(text, dict) else {**given, "file": text}
            yield from _one(one, each if isinstance(each, dict) else {"error": each}, f"[{index}] ")
        return
    yield from _one(given, expect, "")


def _ipv6(given: dict[str, Any]) -> bool:
    return bool(given.get("enable-ipv6", given.get("enable_ipv6", False)))


def _one(given: dict[str, Any], expect: dict[str, Any], where: str) -> Iterator[Answer]:
    reserved = bool(given.get("nomasq-all-reserved-ranges", False))
    try:
        config = masq_agent.parse(given.get("file"), ipv6=_ipv6(given), all_reserved=reserved)
    except masq_agent.MasqFileError as error:
        refused = any("error" in key or "refused" in str(value).lower() for key, value in expect.items())
        yield Answer(f"{where}refused", expect, str(error), refused or "kept" in str(expect).lower())
        return
    if "error" in expect:
        yield Answer(f"{where}refused", expect["error"], config, False)
        return
    got: dict[str, Any] = {
        "nonMasqueradeCIDRs": [str(net) for net in config.non_masquerade_cidrs],
        "masqLinkLocal": config.masq_link_local,
        "masqLinkLocalIPv6": config.masq_link_local_ipv6,
        "cidrLimit": config.cidr_limit,
        "v4": [str(net) for net in config.not_masqueraded(Family.V4)],
        "v6": [str(net) for net in config.not_masqueraded(Family.V6)],
        "v4_not_masqueraded": [str(net) for net in config.not_masqueraded(Family.V4)],
        "v6_not_masqueraded": [str(net) for net in config.not_masqueraded(Family.V6)],
        "resync": config.resync_interval,
    }
    for key, wanted in expect.items():
        if key == "resyncInterval":
            yield same(where + key, parse_duration(str(wanted)), config.resync_interval)
        elif key == "not_masqueraded_besides":
            local = [str(net) for net in masq_agent.LINK_LOCAL.values()]
            yield same(where + key, [str(text).split()[0] for text in wanted], local)
            for family, net in masq_agent.LINK_LOCAL.items():
                yield same(f"{where}{key} {family}", True, net in config.not_masqueraded(family))
        elif key in got:
            yield same(where + key, wanted, got[key])
        else:
            yield elsewhere(where + key, "tests/behaviour/test_masq_agent.py sends packets")
