"""Shared cases of overlays, start-up, ip-masq-agent, CNI and IPAM, asked of the product's own functions.

    python -m tests.underlay.vectors FILE…

A file is a list of cases: ``{"id", "title", "given", "expect", …}``. The part of the id before the dash says which
module of ``tests.underlay`` asks (``FAMILIES``). What a case expects of packets or of the kernel's order is not asked
here: the tests that the runner names try it. Exit status 0 if everything that was asked agrees.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

FAMILIES = {
    "vxlan": "tests.underlay.ask_overlay",
    "ipip": "tests.underlay.ask_overlay",
    "wg": "tests.underlay.ask_wireguard",
    "rules": "tests.underlay.ask_rules",
    "mtu": "tests.underlay.ask_mtu",
    "start": "tests.underlay.ask_start",
    "masq": "tests.underlay.ask_masq",
    "cni": "tests.underlay.ask_cni",
    "ipam": "tests.underlay.ask_ipam",
}
"""Part of the id before the dash → the module whose ``ask(case)`` gives answers."""


class Answer(NamedTuple):
    """One thing that a case expects: ``got`` is the product's word; ``agrees`` says whether it is as expected.

    ``not_asked`` names the test that tries what no function can be asked for.
    """

    what: str
    wanted: Any = None
    got: Any = None
    agrees: bool = True
    not_asked: str = ""


def same(what: str, wanted: Any, got: Any) -> Answer:
    """The product says what is expected, value for value."""
    return Answer(what, wanted, got, wanted == got)


def elsewhere(what: str, test: str) -> Answer:
    return Answer(what, not_asked=test)


def answers(case: dict[str, Any]) -> list[Answer]:
    """What the product says to a case."""
    module = FAMILIES.get(str(case["id"]).partition("-")[0])
    if module is None:
        return [elsewhere("everything", "no module asks this family")]
    ask: Callable[[dict[str, Any]], Iterable[Answer]] = importlib.import_module(module).ask
    return list(ask(case))


def cases(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        yield from json.loads(path.read_text())


def main(arguments: list[str]) -> int:
    if not arguments:
        print("python -m tests.underlay.vectors FILE…", file=sys.stderr)
        return 2
    asked = differing = 0
    for case in cases(map(Path, arguments)):
        for answer in answers(case):
            if answer.not_asked:
                print(f"{case['id']}: {answer.what}: not asked here; {answer.not_asked}")
                continue
            asked += 1
            if not answer.agrees:
                differing += 1
                print(f"{case['id']}: {answer.what}: expected {answer.wanted!r}, the product says {answer.got!r}")
    print(f"{asked} answers, {differing} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
