"""The shared cases, and that the runner notices an answer that differs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.underlay import vectors

PROJECT = Path(__file__).resolve().parents[2]
CASES = Path(__file__).parent / "cases"
ALL = list(vectors.cases(sorted(CASES.glob("*.json"))))


@pytest.mark.parametrize("case", ALL, ids=[case["id"] for case in ALL])
def test_product_says_what_the_case_expects(case: dict[str, Any]) -> None:
    answers = vectors.answers(case)
    assert answers
    assert not [answer for answer in answers if not answer.agrees]


def test_what_is_asked_elsewhere_is_there() -> None:
    said = [answer.not_asked for case in ALL for answer in vectors.answers(case)]
    named = {path for words in said for path in re.findall(r"tests/[\w/.]*\w", words)}
    assert named
    assert [path for path in sorted(named) if not (PROJECT / path).exists()] == []


@pytest.mark.parametrize(
    ("id_", "path", "value"),
    [
        ("vxlan-01", ("expect", "node1", "v6"), "66:f9:37:c3:7e:94"),
        ("mtu-02", ("expect", "pod_mtu"), 1450),
        ("mtu-04", ("expect", "computed"), 1280),
        ("rules-02", ("expect", "packets"), [{"from": "10.9.0.2", "proto": 4, "verdict": "drop"}]),
        ("start-01", ("expect", "ipv4"), "10.9.0.1/24"),
        ("start-08", ("expect", "ipv6"), "fd09::98/64"),
        ("start-10", ("expect", "cidr"), "172.16.0.0/16"),
        ("masq-02", ("expect", "v6"), ["fe80::/10"]),
        ("cni-02", ("expect", "pools"), ["10.48.0.0/21"]),
        ("ipam-04", ("expect", "error"), "none"),
    ],
)
def test_runner_names_what_differs(
    id_: str, path: tuple[str, ...], value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = [json.loads(json.dumps(one)) for one in ALL if one["id"] == id_]
    place = case
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([case]))
    assert vectors.main([str(file)]) == 1
    assert id_ in capsys.readouterr().out


def test_runner_succeeds_where_all_agrees(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([case for case in ALL if case["id"] in ("vxlan-01", "mtu-01", "masq-01")]))
    assert vectors.main([str(file)]) == 0
