"""The command line: which commands there are. Each ends with an exit code and at most one sentence of error.

A command's module is imported when the command is asked for: ``felixpy run`` on every node loads no other. Exit codes:
README, "Commands".
"""

from __future__ import annotations

import os
import sys

import click
from click.exceptions import Exit

from felixpy import __version__
from felixpy.commands import completion
from felixpy.commands.errors import USAGE, plain_errors
from felixpy.commands.group import Commands
from felixpy.commands.standard_streams import give_output_up, mend

COMMANDS = {
    "run": "run",
    "plan": "plan",
    "node": "own_node",
    "show": "kernel",
    "cleanup": "kernel",
    "check": "node",
    "explain": "node",
    "status": "node",
    "diag": "node",
    "apply": "stream",
    "delete": "stream",
    "get": "stream",
    "diff": "stream",
    "takeover": "takeover",
    "connectivity": "connectivity",
    "demo": "demo",
    "version": "main",
    "ipam": "ipam",
    "hub": "hub",
}
"""Modules of this package by the command that each has under its own name, in the order of the help."""


def _print_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        with plain_errors():
            click.echo(f"felixpy {__version__}")
        raise Exit


@click.group(
    cls=Commands,
    modules={name: f"felixpy.commands.{module}" for name, module in COMMANDS.items()},
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@completion.install
@completion.show
def app() -> None:
    """Node dataplane agent: carries a node's workloads over IPv4, IPv6 or both."""


@click.command()
def version() -> None:
    """Print the version.

    Examples:

        felixpy version
    """
    with plain_errors():
        click.echo(f"felixpy {__version__}")


def main() -> None:
    """Run the command that the arguments name."""
    mend()
    click.UsageError.exit_code = USAGE  # 2 is what `plan`, `check` and others say something with
    try:
        app(prog_name="felixpy", color=False if os.environ.get("NO_COLOR") else None)
    except OSError as error:  # not of a command: of its help
        if give_output_up() is None:
            raise
        sys.exit(f"felixpy: cannot write to standard output: {error.strerror}")
