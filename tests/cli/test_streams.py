"""Standard streams that are closed, full, without a reader or of a small encoding; and Ctrl-C before anything runs."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from felixpy.demo.agent import FELIXPY, environment

LOCAL = "explain 127.0.0.1 127.0.0.1"
"""A command that prints arrows, and needs nothing."""


def shell(command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash; ``felixpy`` in it is the command."""
    script = f'set -o pipefail; felixpy() {{ "$FELIXPY" {" ".join(FELIXPY[1:])} "$@"; }}; {command}'
    env = environment({"FELIXPY": FELIXPY[0], "COLUMNS": "200", **more})
    return subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["version", LOCAL, "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_output_is_one_sentence(network: None, command: str, unbuffered: str) -> None:
    done = shell(f"felixpy {command} >/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == "felixpy: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("command", ["version", LOCAL])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_is_gone_ends_it_in_silence(network: None, command: str, unbuffered: str) -> None:
    done = shell(f"felixpy {command} | sleep 0", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(node: None, closed: str) -> None:
    for command, code in (("cleanup --dry-run", 0), ("explain here there", 64)):
        done = shell(f"felixpy {command} {closed}")
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr


def test_an_encoding_without_arrows_shows_escapes(network: None) -> None:
    done = shell(f"felixpy {LOCAL}", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "127.0.0.1 \\u2192 127.0.0.1 icmp" in done.stdout


def test_ctrl_c_while_it_starts_ends_it_without_a_traceback() -> None:
    script = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *more):
        if name == "felixpy.commands.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from felixpy.__main__ import main
main()
"""
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
