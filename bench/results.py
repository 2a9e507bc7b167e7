"""What a run found: series of samples, each with all that says what it is, and the machine; to JSON and back. Pure.

A series is one metric of one subject in one scenario at one size, mode and back-end. Times are milliseconds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.statistics import Summary, summarise

FELIXPY = "felixpy"
EXTERNAL = "external"
"""The agent given by ``--external``."""
FORMAT = 1


class Cell(NamedTuple):
    """Where a series was measured: back-end (``nftables``, ``legacy``, ``nft``), mode and workloads preloaded."""

    backend: str
    mode: str
    size: int

    def __str__(self) -> str:
        return f"{self.backend} {self.mode} N={self.size:,}"


@dataclass
class Series:
    """All samples of one metric."""

    scenario: str
    metric: str
    cell: Cell
    subject: str = FELIXPY
    unit: str = "ms"
    samples: list[float] = field(default_factory=list)

    @property
    def summary(self) -> Summary:
        return summarise(self.samples)


BACKENDS = ("nftables", "legacy", "nft")
MODES = ("dual", "v4", "v6")


def _order(cell: Cell) -> tuple[int, int, int]:
    return MODES.index(cell.mode), BACKENDS.index(cell.backend), cell.size


class Results:
    """The series of a run, found by what they are."""

    def __init__(self, machine: dict[str, Any]) -> None:
        self.machine = machine
        self.remarks: list[str] = []
        """What was left out or is doubtful, one sentence each."""
        self._series: dict[tuple[str, str, Cell, str], Series] = {}

    def add(
        self,
        cell: Cell,
        scenario: str,
        metric: str,
        *samples: float,
        subject: str = FELIXPY,
        unit: str = "ms",
    ) -> None:
        key = (scenario, metric, cell, subject)
        series = self._series.setdefault(key, Series(scenario, metric, cell, subject, unit))
        series.samples += samples

    def remark(self, sentence: str) -> None:
        """Keep one sentence for the report, once."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)

    def get(self, cell: Cell, scenario: str, metric: str, subject: str = FELIXPY) -> Summary | None:
        """Statistics of one series; None if it was not measured."""
        series = self._series.get((scenario, metric, cell, subject))
        return series.summary if series and series.samples else None

    def samples(self, cell: Cell, scenario: str, metric: str, subject: str = FELIXPY) -> list[float]:
        series = self._series.get((scenario, metric, cell, subject))
        return series.samples if series else []

    @property
    def cells(self) -> list[Cell]:
        return sorted({series.cell for series in self._series.values()}, key=_order)

    @property
    def subjects(self) -> list[str]:
        """felixpy first."""
        return sorted({series.subject for series in self._series.values()}, key=lambda one: (one != FELIXPY, one))

    def to_json(self) -> dict[str, Any]:
        found = []
        for one in self._series.values():
            if one.samples:
                record = asdict(one) | one.cell._asdict() | {"summary": one.summary._asdict()}
                record.pop("cell")
                record["noisy"] = one.summary.noisy
                record["samples"] = [round(sample, 4) for sample in one.samples]
                found.append(record)
        return {"format": FORMAT, "machine": self.machine, "remarks": self.remarks, "series": found}

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), separators=(",", ":")) + "\n")


def load(path: Path) -> Results:
    """Read a file that ``write`` wrote.

    Raises:
        ValueError: it is of another format.
    """
    document = json.loads(path.read_text())
    if document.get("format") != FORMAT:
        raise ValueError(f"{path} is not a benchmark result of format {FORMAT}; run the benchmark again")
    results = Results(document["machine"])
    results.remarks = list(document["remarks"])
    for one in document["series"]:
        cell = Cell(one["backend"], one["mode"], one["size"])
        results.add(cell, one["scenario"], one["metric"], *one["samples"], subject=one["subject"], unit=one["unit"])
    return results
