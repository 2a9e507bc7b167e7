"""A reader of the log that stands still stops nothing; what is lost by it is counted and told."""

from __future__ import annotations

import json
import subprocess
import sys

from felixpy.observe.log import MAX_ITEMS, MAX_TEXT, cut_values
from felixpy.observe.log_writer import STOOD_STILL

LINES = 3000
SCRIPT = f"""
import sys
import structlog
from felixpy.observe import log_writer
from felixpy.observe.log import configure_logging
from felixpy.observe.log_limit import LogLimit
log_writer.ROOM_BYTES = 1 << 20
limit = LogLimit()
configure_logging("INFO", limit, in_thread=True)
log = structlog.get_logger()
for number in range({LINES}):
    log.critical("line", number=number, padding="x" * 1000)
print("alive", limit.errors, flush=True)
sys.stdin.readline()
log.critical("last")
"""


def test_a_reader_that_stands_still_blocks_nobody_and_what_is_lost_is_told() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        alive, lost = process.stdout.readline().split()  # nobody has read a line of the log
        assert alive == "alive" and int(lost) > 0
        seen = [json.loads(process.stderr.readline())]
        process.stdin.write("\n")
        process.stdin.flush()
        seen += [json.loads(line) for line in process.stderr]
        assert process.wait() == 0
    told = sum(line["count"] for line in seen if line["event"] == STOOD_STILL)
    written = [line["number"] for line in seen if line["event"] == "line"]
    assert written == sorted(written)
    assert told == int(lost) == LINES - len(written)
    assert seen[-1]["event"] == "last"


def test_long_values_are_cut() -> None:
    event = {"event": "x", "text": "a" * 100_000, "items": list(range(10_000)), "short": "b", "few": (1, 2)}
    line = cut_values(None, "info", event)
    assert line["text"] == "a" * MAX_TEXT + "… (100000 characters)"
    assert line["items"][-1] == f"… and {10_000 - MAX_ITEMS} more" and len(line["items"]) == MAX_ITEMS + 1
    assert (line["short"], line["few"]) == ("b", (1, 2))
