"""Where settings come from: the environment, a TOML file, FelixConfigurations. Reading only; nothing is judged here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from felixpy.plain_error import PlainError

_PREFIX = "felix_"
_SERVICE = re.compile(
    r"FELIX(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
"""Names that the kubelet gives: ``FELIX_MQTT_PORT=tcp://10.96.0.5:1883`` for a Service ``felix-mqtt``."""


class SettingsFileError(PlainError):
    """The settings file cannot be read: one sentence with the file and the reason."""


class SettingsFileDenied(SettingsFileError):
    """It is for others than this user."""


class SettingsSource(Struct, frozen=True):
    """Settings as written: name → value. ``local`` sources belong to this machine, the others come from the stream.

    ``empty_is_none``: an empty path says that there is none. An empty variable does not, it counts as not set, as in
    Felix: manifests and scripts pass on what nobody has filled in.
    ``plain_names``: a name is written without underscores, as Felix has it in the environment.
    """

    name: str
    values: Mapping[str, object]
    local: bool = True
    empty_is_none: bool = True
    plain_names: bool = False


def _of_service(variable: str, value: str) -> bool:
    """Whether the kubelet gave it. FELIX_MQTT_PORT=1883 is a person's, who is told that it is no setting."""
    is_number = value.isdecimal() and not re.search("SERVICE_PORT|_(TCP|UDP|SCTP)_PORT", variable)
    return bool(_SERVICE.fullmatch(variable)) and not is_number


def load_environment(environ: Mapping[str, str]) -> SettingsSource:
    """``FELIX_<name>`` in any case, and ``NODENAME`` where ``FELIX_FELIXHOSTNAME`` is not set.

    What the kubelet tells of Services whose names begin with ``felix`` is nobody's setting, and is left out.
    """
    values: dict[str, object] = {}
    for variable, value in sorted(environ.items()):
        if variable.lower().startswith(_PREFIX) and len(variable) > len(_PREFIX) and not _of_service(variable, value):
            values[variable[len(_PREFIX) :]] = value
    own_name = next((name for name, value in values.items() if name.lower() == "felixhostname" and value), None)
    if environ.get("NODENAME") and own_name is None:
        values["FelixHostname"] = environ["NODENAME"]
    return SettingsSource("environment", values, empty_is_none=False, plain_names=True)


def load_toml(path: Path) -> SettingsSource:
    """Settings of a TOML file, in tables or not; a missing file sets nothing.

    Raises:
        SettingsFileError: unreadable, or not TOML.
    """
    try:
        with path.open("rb") as file:
            import tomllib  # 4 ms of every start, also where there is no such file

            raw = tomllib.load(file)
    except FileNotFoundError:
        return SettingsSource(str(path), {})
    except PermissionError as error:
        raise SettingsFileDenied(
            f"{path}: the settings file cannot be read: {error.strerror}; run it with sudo"
        ) from None
    except OSError as error:
        raise SettingsFileError(f"{path}: the settings file cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsFileError(f"{path}: the settings file is not TOML: {error}") from None
    values: dict[str, object] = {}
    for name, value in raw.items():
        values.update(value if isinstance(value, dict) else {name: value})
    return SettingsSource(str(path), values)
