"""What a command loads before it does anything: start-up time and memory that every node pays."""

from __future__ import annotations

import subprocess
import sys

import pytest

NOT_NEEDED = {"aiohttp", "aiomqtt", "iptc", "paho", "prometheus_client", "pyroute2", "tomllib", "watchfiles", "yaml"}
"""Of a settings file, HTTP, metrics, a broker or a resource directory, one back-end, other commands and the tests."""
OF_SOME = ("felixpy.agent.containers", "felixpy.cni.server", "felixpy.kubernetes.client", "felixpy.sources.mqtt")
"""Modules of nodes that attach containers, or have one of the sources; loaded when the settings have said so."""
FOR_SETTINGS = {"asyncio", "msgspec", "structlog", *NOT_NEEDED}
"""What is loaded with settings and logging, which a version does not need."""


def loaded(*arguments: str) -> set[str]:
    """Modules that a command has loaded when its arguments are read, without those that only development brings."""
    script = (
        "import sys\n"
        "sys.modules['rich'] = None  # a tool of development needs it, and structlog takes what it finds\n"
        "from felixpy.__main__ import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run((sys.executable, "-c", script, *arguments), capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_an_agent_loads_only_what_every_node_needs_before_it_knows_its_settings() -> None:
    modules = loaded("run", "--help")
    assert "felixpy.agent.daemon" in modules
    assert not {name.partition(".")[0] for name in modules} & NOT_NEEDED
    assert not modules.intersection((*OF_SOME, "click.shell_completion"))
    assert {name for name in modules if name.startswith("felixpy.commands.")} == {
        f"felixpy.commands.{name}"
        for name in ("common", "completion", "errors", "group", "main", "options", "run", "standard_streams")
    }


@pytest.mark.parametrize("arguments", [("--version",), ("version",)])
def test_a_version_needs_no_settings(arguments: tuple[str, ...]) -> None:
    modules = loaded(*arguments)
    assert "click" in modules
    assert not {name.partition(".")[0] for name in modules} & FOR_SETTINGS


def test_nothing_is_collected_while_a_command_is_imported() -> None:
    script = (
        "import gc, sys\n"
        "from felixpy.commands.main import app\n"
        "import click\n"
        "found = []\n"
        "def is_imported(): return hasattr(sys.modules.get('felixpy.commands.run'), 'run')\n"
        "gc.callbacks.append(lambda phase, info: found.append(is_imported()))\n"
        "app.get_command(click.Context(app), 'run')\n"
        "gc.callbacks.clear()\n"
        "print(found.count(False), gc.isenabled())\n"
    )
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]
