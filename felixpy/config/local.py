"""Settings of this machine: environment and settings file, for the agent as a process and for every command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from felixpy.config.resolve import SettingProblem, resolve
from felixpy.config.settings import Settings
from felixpy.config.sources import SettingsFileDenied, SettingsSource, load_environment, load_toml
from felixpy.plain_error import PlainError

DEFAULT_SETTINGS_FILE = Path("/etc/felixpy/felixpy.toml")


class Local(NamedTuple):
    """Settings of this machine: what environment and file say, and the sources themselves."""

    settings: Settings
    sources: tuple[SettingsSource, ...]


def local_sources(
    path: Path | None, *, of_node: bool = True
) -> tuple[tuple[SettingsSource, ...], Settings, tuple[SettingProblem, ...]]:
    """What environment and file say, the settings that follow, and what is passed over.

    A command that is not ``of_node`` goes on without the usual file where that is for root only.

    Raises:
        PlainError: a value is bad, or there is no such file.
        SettingsFileError: the file cannot be read.
    """
    sources = [load_environment(os.environ)]
    if path is not None and not path.exists():
        raise PlainError(f"{path}: no such settings file; check --config")
    try:
        sources.append(load_toml(path or DEFAULT_SETTINGS_FILE))
    except SettingsFileDenied as error:
        if path is not None or of_node:
            raise
        print(f"felixpy: {error}, if it has what is needed; going on without it", file=sys.stderr)
    settings, problems = resolve(sources)
    if fatal := [str(problem) for problem in problems if problem.fatal]:
        raise PlainError("; ".join(fatal))
    return tuple(sources), settings, problems
