"""From sources to ``Settings``: precedence, and one problem for everything that could not be used.

Pure, so that a change in the stream is resolved by resolving everything again. A value of a secret setting must never
reach a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from msgspec import Struct

from felixpy.config.settings import DECLARATIONS, Declaration, Settings
from felixpy.config.sources import SettingsSource
from felixpy.config.values import OPTIONAL_PATH
from felixpy.config.without_effect import has_no_effect
from felixpy.model.net import quote
from felixpy.model.resources import FelixConfiguration
from felixpy.model.selectors import parse_selector


class ProblemKind(Enum):
    """What became of a setting that a source holds."""

    BAD_VALUE = "bad value"
    UNKNOWN = "unknown"
    NO_EFFECT = "no effect"
    LOCAL_ONLY = "local only"


class SettingProblem(Struct, frozen=True):
    """One setting of one source that was passed over. Hashable, so that it can be reported once."""

    kind: ProblemKind
    setting: str
    source: str
    value: str = ""
    reason: str = ""
    expected: str = ""
    local: bool = True

    @property
    def fatal(self) -> bool:
        """Whether an agent must not start with it: a bad value on this machine."""
        return self.kind is ProblemKind.BAD_VALUE and self.local

    def __str__(self) -> str:
        subject = f"setting {self.setting} ({self.source})"
        if self.kind is ProblemKind.BAD_VALUE:
            expected = f"; expected {self.expected.replace('`', '')}" if self.expected else ""
            return f"{subject}: {self.value} {self.reason}{expected}"
        return f"{subject}: {self.reason}"


def _names() -> dict[str, Declaration]:
    found: dict[str, Declaration] = {}
    for attribute, declaration in DECLARATIONS.items():
        for name in (declaration.name, *declaration.also, attribute):
            found.setdefault(_normal(name), declaration)
    return found


def _normal(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


_BY_NAME = _names()


Refuses = Callable[[str, Any], str]
"""Why a value of the stream, by attribute, must not be taken on this node though it is a good one; empty if it may."""


def _refuses_nothing(attribute: str, value: Any) -> str:
    return ""


def resolve(
    sources: Sequence[SettingsSource], refuses: Refuses = _refuses_nothing
) -> tuple[Settings, tuple[SettingProblem, ...]]:
    """Settings from sources, the most important first. Every value is parsed, also where another source wins."""
    values: dict[str, Any] = {}
    problems: list[SettingProblem] = []
    for source in sources:
        for name, raw in source.values.items():
            outcome = _read(source, name, raw, refuses)
            if isinstance(outcome, SettingProblem):
                problems.append(outcome)
            elif outcome is not None:
                values.setdefault(*outcome)
    return Settings(**values), tuple(problems)


def _read(source: SettingsSource, name: str, raw: object, refuses: Refuses) -> tuple[str, Any] | SettingProblem | None:
    """Attribute and value, or what is wrong with them; None for what counts as not set."""
    declaration = _BY_NAME.get(_normal(name))
    if declaration is not None and source.plain_names and "_" in name:
        reason = f"is not a setting: its name has no underscores, as in {declaration.variable}; it is ignored"
        return SettingProblem(ProblemKind.UNKNOWN, quote(name)[1:-1], source.name, reason=reason, local=source.local)
    if declaration is None:
        return _unusable(source, name)
    is_empty = isinstance(raw, str) and not (raw if declaration.secret else raw.strip())
    if raw is None or (is_empty and not (source.empty_is_none and declaration.parser is OPTIONAL_PATH)):
        return None
    if declaration.local_only and not source.local:
        reason = "can be set in the environment or the settings file only; it is ignored here"
        return SettingProblem(ProblemKind.LOCAL_ONLY, declaration.name, source.name, reason=reason, local=False)
    if declaration.attribute == "device_route_protocol" and str(raw).strip() in _FELIX_PROTOCOLS:
        reason = f"{raw} is Felix's, whose routes are not ours to remove: felixpy keeps its own number"
        return SettingProblem(ProblemKind.NO_EFFECT, declaration.name, source.name, reason=reason, local=source.local)
    try:
        value = _parse(declaration, raw)
        if not source.local and (reason := refuses(declaration.attribute, value)):
            kind = ProblemKind.BAD_VALUE
            return SettingProblem(kind, declaration.name, source.name, quote(raw), reason, local=False)
        return declaration.attribute, value
    except ValueError as error:
        reason = str(error) if not declaration.secret else "cannot be used"
        shown = "(hidden)" if declaration.secret else quote(raw)
        expected = declaration.parser.expected
        kind = ProblemKind.BAD_VALUE
        return SettingProblem(kind, declaration.name, source.name, shown, reason, expected, source.local)


_FELIX_PROTOCOLS = frozenset({"3", "80"})
"""Felix's default and Calico's own: what the environment of a calico-node has."""


def _unusable(source: SettingsSource, name: str) -> SettingProblem:
    shown = quote(name)[1:-1]
    if has_no_effect(_normal(name)):
        reason = "has no effect in felixpy yet"
        return SettingProblem(ProblemKind.NO_EFFECT, shown, source.name, reason=reason, local=source.local)
    reason = "is not a setting that felixpy knows; it is ignored"
    return SettingProblem(ProblemKind.UNKNOWN, shown, source.name, reason=reason, local=source.local)


def _parse(declaration: Declaration, raw: object) -> Any:
    text = _as_text(raw)
    if declaration.secret:
        return declaration.parser.parse(text)
    text = text.strip()
    if not text or text.lower() == "none":
        if not declaration.parser.zero:
            raise ValueError("is not possible here")
        return declaration.parser.zero[0]
    return declaration.parser.parse(text)


def _as_text(raw: object) -> str:
    """One form for what the environment has as text and TOML and JSON have as numbers, booleans or lists."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, str | int | float):
        return str(raw)
    if isinstance(raw, list) and all(isinstance(item, str | int) for item in raw):
        return ",".join(str(item) for item in raw)
    if isinstance(raw, list) and all(isinstance(item, Mapping) and {*item} <= _PORT_FIELDS for item in raw):
        return ",".join(map(_port_text, raw))
    if isinstance(raw, list) and all(isinstance(item, Mapping) and {*item} == _RANGE_FIELDS for item in raw):
        return ",".join(f"{one['min']}-{one['max']}" for one in raw)
    if isinstance(raw, Mapping) and {*raw} == _RANGE_FIELDS:
        return f"{raw['min']}-{raw['max']}"
    raise ValueError("is neither text, number, boolean nor a list of texts, of ports or of ranges")


_PORT_FIELDS = frozenset({"protocol", "port", "net"})
_RANGE_FIELDS = frozenset({"min", "max"})


def _port_text(port: Mapping[str, object]) -> str:
    """A failsafe port of a FelixConfiguration as the environment has it."""
    net = f"[{port['net']}]:" if port.get("net") else ""
    return f"{port.get('protocol') or 'tcp'}:{net}{port.get('port', '')}".lower()


def resolve_stream(
    base_sources: Sequence[SettingsSource],
    configurations: Iterable[FelixConfiguration],
    node_name: str,
    node_labels: Mapping[str, str],
    refuses: Refuses = _refuses_nothing,
) -> tuple[Settings, tuple[SettingProblem, ...]]:
    """Settings from this machine's sources (environment, file) and below them those of the stream that apply here.

    In order: ``node.<name>``, the oldest FelixConfiguration whose ``nodeSelector`` matches, ``default``.
    """
    own: list[FelixConfiguration] = []
    default: list[FelixConfiguration] = []
    selecting: list[FelixConfiguration] = []
    problems: list[SettingProblem] = []
    for configuration in configurations:
        name = configuration.key.name
        if name == "default":
            default.append(configuration)
        elif name == f"node.{node_name}":
            own.append(configuration)
        elif not name.startswith("node."):
            outcome = _selects(configuration, node_labels)
            if isinstance(outcome, SettingProblem):
                problems.append(outcome)
            elif outcome:
                selecting.append(configuration)
    # Without a time of creation: younger than all that have one. The name makes the order total.
    selecting.sort(key=lambda configuration: (not configuration.created, configuration.created, configuration.key.name))
    chosen = [_source(configuration) for configuration in (*own, *selecting[:1], *default)]
    settings, found = resolve([*base_sources, *chosen], refuses)
    return settings, (*problems, *found)


def configuration_problems(configuration: FelixConfiguration) -> tuple[SettingProblem, ...]:
    """What every agent that this object is for will say of it."""
    _, problems = resolve([_source(configuration)])
    name = configuration.key.name
    if name == "default" or name.startswith("node."):
        return problems
    outcome = _selects(configuration, {})
    return (outcome, *problems) if isinstance(outcome, SettingProblem) else problems


def _source(configuration: FelixConfiguration) -> SettingsSource:
    spec = {name: value for name, value in configuration.spec.items() if name != "nodeSelector"}
    return SettingsSource(str(configuration.key), spec, local=False)


def _selects(configuration: FelixConfiguration, labels: Mapping[str, str]) -> bool | SettingProblem:
    raw = configuration.spec.get("nodeSelector")
    reason = "is missing, so that this object applies to no node; name it default or node.<name>, or add one"
    if isinstance(raw, str) and raw.strip():
        try:
            return parse_selector(raw).matches(labels)
        except ValueError as error:
            reason = f"is not a selector: {error}"
    elif raw:
        reason = "is not a selector"
    shown = quote(raw or "")
    return SettingProblem(ProblemKind.BAD_VALUE, "nodeSelector", str(configuration.key), shown, reason, local=False)
