"""The configuration that we recommend is one that Mosquitto starts with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.broker import free_port, running

CONFIG = Path(__file__).parents[2] / "config" / "mosquitto.conf"


def test_mosquitto_starts_with_the_recommended_configuration(tmp_path: Path) -> None:
    lines = CONFIG.read_text().splitlines()
    # The port and the folder are the test's own.
    kept = [line for line in lines if not line.startswith(("listener ", "persistence_file "))]
    assert len(kept) == len(lines) - 2
    kept.append(f"persistence_file {tmp_path}/mosquitto.db")
    with running(tmp_path, tuple(kept)) as broker:
        assert "Error" not in broker.log()
    assert (tmp_path / "mosquitto.db").exists()


def test_what_it_holds_is_there_after_a_restart_as_a_service(tmp_path: Path) -> None:
    """As on Debian: started in ``/``, as a user who may write in its own folder alone."""
    place = "/var/lib/mosquitto"
    config = tmp_path / "mosquitto.conf"
    port = free_port()
    config.write_text(CONFIG.read_text().replace("listener 1883 127.0.0.1", f"listener {port} 127.0.0.1"))
    script = f"""
set -e
mount -t tmpfs none {place}; chown mosquitto: {place}
cd /
for round in 1 2; do
    mosquitto -c {config} & broker=$!
    until mosquitto_pub -p {port} -t up -m x 2>/dev/null; do kill -0 $broker; sleep 0.05; done
    [ $round = 2 ] || mosquitto_pub -p {port} -q 1 -r -t felixpy/v1/ippool/a -m kept
    [ $round = 1 ] || timeout 20 mosquitto_sub -p {port} -t felixpy/v1/ippool/a -C 1
    kill $broker; wait $broker || true
done
"""
    tmp_path.chmod(0o755)
    command = ("unshare", "--mount", "--propagation", "private", "bash", "-c", script)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "kept\n", done
