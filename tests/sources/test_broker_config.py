"""The configuration that we recommend is one that Mosquitto starts with."""

from __future__ import annotations

from pathlib import Path

from tests.broker import running

CONFIG = Path(__file__).parents[2] / "config" / "mosquitto.conf"


def test_mosquitto_starts_with_the_recommended_configuration(tmp_path: Path) -> None:
    lines = CONFIG.read_text().splitlines()
    # The port and the folder are the test's own.
    kept = [line for line in lines if not line.startswith("listener ")]
    assert len(kept) == len(lines) - 1
    kept.append(f"persistence_location {tmp_path}/")
    with running(tmp_path, tuple(kept)) as broker:
        assert "Error" not in broker.log()
    assert (tmp_path / "mosquitto.db").exists()
