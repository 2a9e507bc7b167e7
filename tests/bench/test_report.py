"""The report and its verdicts, from a canned run; what was not measured is said to be so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import budget, report
from bench.plots import draw
from bench.results import Cell, Results, load

MACHINE = {
    "processor": "Test processor", "processors": 2, "memory_mib": 4096, "kernel": "6.1", "architecture": "x86_64",
    "python": "3.11", "versions": {"felixpy": "0"}, "load_before": [0.1, 0.2, 0.3], "seconds": 12.0,
}  # fmt: skip
FEW, FULL, MANY = (Cell("nftables", "dual", size) for size in (10, 5_000, 10_000))


@pytest.fixture
def canned() -> Results:
    results = Results(MACHINE)
    results.add(FEW, "add one", "visible", 0.8, 0.9, 1.0)
    results.add(MANY, "add one", "visible", 1.4, 1.5, 1.6)
    results.add(FULL, "add one", "visible", 0.9)
    results.add(FULL, "add one", "visible", 60.0, subject="exec-nft")
    results.add(FULL, "cold start, correct kernel", "messages", 0, unit="count")
    results.add(MANY, "idle", "resident memory", 151.0, unit="MiB")
    results.add(FEW, "forwarding", "packets IPv4", 90.0, unit="1/s")
    results.add(FEW, "forwarding", "packets IPv4", 100.0, subject="none", unit="1/s")
    results.remark("something was left out")
    return results


def verdict(results: Results, what: str, where: Cell | str) -> tuple[str, str]:
    (row,) = [row for row in budget.rows(results) if row.what == what and row.where == str(where)]
    return row.measured, row.verdict


def test_verdicts_follow_the_figures(canned: Results) -> None:
    p50 = "publish → programmed, one workload, p50"
    assert verdict(canned, p50, FEW) == ("0.9 ms", budget.MET)
    assert verdict(canned, p50, MANY) == ("1.5 ms", budget.MISSED)
    assert verdict(canned, "p50 at 10,000 against p50 at 10", "nftables dual") == ("1.67 ×", budget.MISSED)
    assert verdict(canned, "writes of a cold start, correct kernel", FULL) == ("0", budget.MET)
    assert verdict(canned, "resident memory", MANY) == ("151 MiB", budget.MISSED)
    assert verdict(canned, "one workload visible sooner than by exec-nft", FULL) == ("66.7 ×", budget.MET)


def test_what_was_not_measured_is_said(canned: Results) -> None:
    assert verdict(canned, "idle processor share", MANY) == ("–", budget.UNMEASURED)
    assert all(row.verdict == budget.UNMEASURED for row in budget.rows(Results(MACHINE)))


def test_the_same_rows_are_listed_whatever_was_measured() -> None:
    assert len(budget.rows(Results(MACHINE))) == len({(row.what, row.where) for row in budget.rows(Results(MACHINE))})


def test_the_page_is_written_from_the_json_alone(canned: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    canned.write(path)
    again = load(path)
    page = report.render(again, [], "make bench")
    assert page == report.render(canned, [], "make bench")
    assert "- something was left out" in page
    assert "| nftables dual N=10 | packets IPv4 | 90 | 100 | 90% | 1 |" in page
    assert "| nftables dual N=5,000 | add one | exec-nft | 0.9 | 60 | 66.7 × |" in page
    head = {"scenario", "metric", "subject", "unit", "backend", "mode", "size", "samples", "summary", "noisy"}
    assert set(json.loads(path.read_text())["series"][0]) == head


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="run the benchmark again"):
        load(path)


def test_plots_are_drawn(canned: Results, tmp_path: Path) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return  # an extra of the benchmark; without it the report says that plots are left out
    names = draw(canned, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{n}.{e}" for n in names for e in ("png", "svg"))
