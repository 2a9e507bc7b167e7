"""Where settings come from: the environment, a TOML file, FelixConfigurations. Reading only; nothing is judged here."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from felixpy.plain_error import PlainError

_PREFIX = "felix_"


class SettingsFileError(PlainError):
    """The settings file cannot be read: one sentence with the file and the reason."""


@dataclass(frozen=True, slots=True)
class SettingsSource:
    """Settings as written: name → value. ``local`` sources belong to this machine, the others come from the stream.

    ``empty_is_none``: an empty path says that there is none. An empty variable does not, it counts as not set, as in
    Felix: manifests and scripts pass on what nobody has filled in.
    """

    name: str
    values: Mapping[str, object]
    local: bool = True
    empty_is_none: bool = True


def load_environment(environ: Mapping[str, str]) -> SettingsSource:
    """``FELIX_<name>`` in any case, and ``NODENAME`` where ``FELIX_FELIXHOSTNAME`` is not set."""
    values: dict[str, object] = {}
    for variable, value in sorted(environ.items()):
        if variable.lower().startswith(_PREFIX) and len(variable) > len(_PREFIX):
            values[variable[len(_PREFIX) :]] = value
    own_name = next((name for name, value in values.items() if name.lower() == "felixhostname" and value), None)
    if environ.get("NODENAME") and own_name is None:
        values["FelixHostname"] = environ["NODENAME"]
    return SettingsSource("environment", values, empty_is_none=False)


def load_toml(path: Path) -> SettingsSource:
    """Settings of a TOML file, in tables or not; a missing file sets nothing.

    Raises:
        SettingsFileError: unreadable, or not TOML.
    """
    try:
        with path.open("rb") as file:
            raw = tomllib.load(file)
    except FileNotFoundError:
        return SettingsSource(str(path), {})
    except OSError as error:
        raise SettingsFileError(f"{path}: the settings file cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsFileError(f"{path}: the settings file is not TOML: {error}") from None
    values: dict[str, object] = {}
    for name, value in raw.items():
        values.update(value if isinstance(value, dict) else {name: value})
    return SettingsSource(str(path), values)
