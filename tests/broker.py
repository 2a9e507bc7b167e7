"""A real Mosquitto for tests: own port on loopback, own folder, ended with the test."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from felixpy.demo.patience import Patience

MOSQUITTO = "/usr/sbin/mosquitto"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """One broker process. ``config`` are lines after ``listener``; without any, Mosquitto's defaults hold."""

    def __init__(self, folder: Path, config: tuple[str, ...] = ("allow_anonymous true",)) -> None:
        self.port = free_port()
        self._folder = folder
        self._file = folder / "mosquitto.conf"
        # Without "user root" a broker started as root becomes a user that cannot read the test's folder.
        self._file.write_text("\n".join((f"listener {self.port} 127.0.0.1", "user root", *config, "")))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "mosquitto.log").open("ab") as output:
            # setpriv (util-linux): a test run that is killed takes its broker with it.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", MOSQUITTO, "-c", str(self._file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        patience = Patience(30)
        while not patience.over():
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise RuntimeError(f"Mosquitto did not start:\n{self.log()}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """SIGKILL: what is not saved is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def reload(self) -> None:
        """SIGHUP: read passwords and access rules again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def restart(self) -> None:
        """Stop and start; without ``persistence`` in the configuration the new one is empty."""
        self.stop()
        self.start()

    def log(self) -> str:
        return (self._folder / "mosquitto.log").read_text(errors="replace")


@contextlib.contextmanager
def running(folder: Path, config: tuple[str, ...] = ("allow_anonymous true",)) -> Iterator[Broker]:
    broker = Broker(folder, config)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
