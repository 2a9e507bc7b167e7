"""What the agent loads before it does anything: start-up time and memory that every node pays."""

from __future__ import annotations

import subprocess
import sys

NOT_NEEDED = {"aiohttp", "iptc", "pyroute2", "watchfiles", "yaml"}
"""Packages of HTTP pages, of a resource directory, of one back-end, of other commands and of the tests."""


def test_a_node_with_a_broker_loads_only_what_it_needs() -> None:
    imports = "import felixpy.commands.main, felixpy.agent.daemon, sys"
    script = f"{imports}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "aiomqtt" in loaded
    assert not loaded & NOT_NEEDED
