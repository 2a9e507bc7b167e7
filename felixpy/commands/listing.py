"""How resources of the broker are listed and compared for people: ``get -o wide|name``, ``diff``, names of kinds."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from felixpy.columns import columns
from felixpy.commands.errors import UsageError
from felixpy.model.resources import Kind
from felixpy.mqtt import topics

SHORT = {
    Kind.WORKLOAD_ENDPOINT: ("wep",),
    Kind.IP_POOL: ("pool",),
    Kind.IPAM_BLOCK: ("block",),
    Kind.BLOCK_AFFINITY: ("affinity", "affinities"),
    Kind.FELIX_CONFIGURATION: ("felixconfig",),
    Kind.BGP_CONFIGURATION: ("bgpconfig",),
}
"""Short names of kinds, beside their own in any case and their plurals: calicoctl's where it has some."""


def kind_named(text: str) -> Kind:
    """The kind that a person means.

    Raises:
        UsageError: there is none.
    """
    wanted = text.lower()
    for kind in Kind:
        names = (kind.lower(), *SHORT.get(kind, ()))
        if wanted in names or any(wanted == plural for name in names for plural in _plurals(name)):
            return kind
    known = ", ".join(f"{kind} ({SHORT[kind][0]})" if kind in SHORT else kind for kind in Kind)
    raise UsageError(f"kind {text} is not one that felixpy knows: {known}")


def _plurals(name: str) -> tuple[str, ...]:
    return (f"{name}s", f"{name}es", f"{name[:-1]}ies")


def names(objects: Mapping[str, Any]) -> list[str]:
    """One object a line, as ``kubectl get -o name``: kind/name, or kind/namespace/name."""
    return ["/".join(part for part in _identity(topic) if part) for topic in objects]


def wide(objects: Mapping[str, Any]) -> list[str]:
    """Columns for people: kind, namespace, name, what its spec says first. Nothing is cut."""
    rows = [("KIND", "NAMESPACE", "NAME", "SPEC")]
    rows += [(*_identity(topic), _spec(value)) for topic, value in objects.items()]
    return columns(rows)


def _identity(topic: str) -> tuple[str, str, str]:
    key = topics.key_of(topic)
    return (key.kind.lower(), key.namespace, key.name) if key else ("?", "", topic)


def _spec(value: Any) -> str:
    spec = value.get("spec") if isinstance(value, dict) else None
    if not isinstance(spec, dict):
        return "-"
    return " ".join(f"{name}={one if isinstance(one, str) else json.dumps(one)}" for name, one in spec.items())


def differences(changes: Mapping[str, tuple[bytes, bytes]]) -> Iterable[str]:
    """Lines of a unified diff: what the broker holds against what the files say."""
    for topic, (before, after) in sorted(changes.items()):
        yield from difflib.unified_diff(
            _lines(before), _lines(after), f"broker/{topic}", f"files/{topic}", lineterm="", n=3
        )


def _lines(payload: bytes) -> list[str]:
    import yaml

    if not payload:
        return []
    try:
        return yaml.safe_dump(json.loads(payload), sort_keys=True).splitlines()
    except (ValueError, RecursionError):
        return payload.decode(errors="backslashreplace").splitlines()
