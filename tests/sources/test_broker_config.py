"""The configuration that we recommend is one that Mosquitto starts with."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import msgspec
from broker import Broker, running
from stream_lab import endpoint, following, pool, settings_for, wep_key

from felixpy.model.documents import load_text
from felixpy.publish import open_publisher
from felixpy.sources import SyncState
from felixpy.sources.batch import prepare
from felixpy.sources.mqtt import MqttSource

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
