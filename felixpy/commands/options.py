"""Options and types of arguments that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from felixpy.config.local import DEFAULT_SETTINGS_FILE


class PathOf(click.Path):
    """A path of the command line. Of an empty one, a shell variable that is not set, pathlib makes this folder."""

    def __init__(self, *, dash_is_stdin: bool = False) -> None:
        super().__init__(path_type=Path)
        self._stdin = dash_is_stdin

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> Path:
        """The path; ``-`` is standard input where that makes sense, as for kubectl."""
        if not value:
            self.fail("the path is empty; is a variable of the shell not set?", parameter, context)
        return Path("/dev/stdin") if value == "-" and self._stdin else Path(str(value))


settings_file = click.option(
    "--config", metavar="FILE", type=PathOf(), help=f"Settings file (TOML); {DEFAULT_SETTINGS_FILE} if it exists."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


snapshot_timeout = click.option(
    "--timeout", metavar="SECONDS", type=float, default=15.0, help="How long to wait for a complete snapshot."
)
