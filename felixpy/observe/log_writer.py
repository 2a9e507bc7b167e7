"""Lines of the log on their way to a file descriptor, in a thread: whoever reads them may stand still.

Invariant: ``put`` returns at once. Lines that find no room are lost, counted, and told once the reader goes on. Must
never keep a process from ending: what is left is written for a limited time.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable

ROOM_BYTES = 4 << 20
"""As many lines wait for a reader that stands still."""
LAST_SECONDS = 1.0
STOOD_STILL = "lines lost: the reader of the log stood still"


class LogWriter:
    """Writes lines to ``descriptor``. ``lost`` is told of the number of each loss, from any thread."""

    def __init__(self, descriptor: int, lost: Callable[[int], None]) -> None:
        self._descriptor = descriptor
        self._lost = lost
        self._room = ROOM_BYTES
        self._lines: deque[bytes] = deque()
        self._waiting = self._untold = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Take a line."""
        data = line.encode(errors="backslashreplace") + b"\n"
        with self._changed:
            if self._waiting + len(data) > self._room:
                self._untold += 1
                self._lost(1)
                return
            self._lines.append(data)
            self._waiting += len(data)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def flush(self, seconds: float = LAST_SECONDS) -> None:
        """Wait until all is written, but not longer."""
        until = time.monotonic() + seconds
        with self._changed:
            while self._waiting and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                data = self._lines.popleft()
                untold, self._untold = self._untold, 0
            if untold:
                told = {"event": STOOD_STILL, "count": untold, "level": "warning"}
                self._write(json.dumps(told).encode() + b"\n")
            self._write(data)
            with self._changed:
                self._waiting -= len(data)
                self._changed.notify_all()

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # nobody reads any more, or the disk is full
            self._lost(1)
