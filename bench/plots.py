"""Plots of a run as PNG and SVG: latency against size, and how latencies are distributed. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.comparators import FOR_BACKEND
from bench.results import EXTERNAL, FELIXPY, Results

TITLES = {"nftables": "nftables", "legacy": "iptables-legacy", "nft": "iptables-nft"}


class NoPlots(Exception):
    """Plots cannot be drawn: one sentence for people."""


def draw(results: Results, folder: Path) -> list[str]:
    """Write every plot that the samples allow; returns their names without ending.

    Raises:
        NoPlots: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise NoPlots("plots are left out: matplotlib is not installed; `make bench` installs it") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "felixpy"  # the same samples give the same file
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, drawing in (("latency-by-size", _by_size), ("latency-distribution", _distribution)):
        figure = drawing(results)
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            names.append(name)
    return names


def _axes(columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * columns, 4), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharex=True, sharey=True)[0]
    return figure, list(axes)


def _backends(results: Results) -> list[str]:
    measured = {
        cell.backend for cell in results.cells if cell.mode == "dual" and results.get(cell, "add one", "visible")
    }
    return [backend for backend in TITLES if backend in measured]


def _by_size(results: Results) -> Any:
    """Median from change to visible, one panel per back-end, one line per subject; both axes logarithmic."""
    backends = _backends(results)
    if not backends:
        return None
    figure, axes = _axes(len(backends))
    for panel, backend in zip(axes, backends, strict=True):
        subjects = [s for s in results.subjects if s in (FELIXPY, EXTERNAL, *FOR_BACKEND[backend])]
        for subject in subjects:
            points = []
            for cell in results.cells:
                found = results.get(cell, "add one", "visible", subject)
                if cell.backend == backend and cell.mode == "dual" and found:
                    points.append((cell.size, found.median))
            if points:
                points.sort()
                width = 2.5 if subject == FELIXPY else 1.2
                panel.plot(*zip(*points, strict=True), marker="o", label=subject, linewidth=width)
        panel.set(xscale="log", yscale="log", title=TITLES[backend], xlabel="workloads on the node")
        panel.grid(visible=True, which="both", alpha=0.3)
        panel.legend()
    axes[0].set_ylabel("one workload added: median, ms")
    figure.suptitle(_title(results, "Until one more workload is in the kernel, dual stack"))
    return figure


def _title(results: Results, what: str) -> str:
    """What is shown, of how many samples a point, and on what machine."""
    counts = [
        found.samples
        for cell in results.cells
        if cell.mode == "dual" and (found := results.get(cell, "add one", "visible"))
    ]
    machine = results.machine
    hardware = f"{machine.get('processors', '?')} × {machine.get('processor', '?')}, Linux {machine.get('kernel', '?')}"
    return f"{what}\nn = {min(counts)} to {max(counts)} a size; {hardware}"


def _distribution(results: Results) -> Any:
    """Share of additions that were visible within a time, per size; one panel per back-end."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    backends = _backends(results)
    if not backends:
        return None
    figure, axes = _axes(len(backends))
    for panel, backend in zip(axes, backends, strict=True):
        for cell in results.cells:
            samples = sorted(results.samples(cell, "add one", "visible"))
            if cell.backend == backend and cell.mode == "dual" and samples:
                shares = [(index + 1) / len(samples) for index in range(len(samples))]
                panel.step(samples, shares, where="post", label=f"{cell.size:,} workloads")
        panel.set(xscale="log", title=TITLES[backend], xlabel="publish → visible, ms")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(visible=True, which="both", alpha=0.3)
        panel.legend()
    axes[0].set_ylabel("share of additions")
    figure.suptitle(_title(results, "Share of additions that are in the kernel within a time, dual stack"))
    return figure
