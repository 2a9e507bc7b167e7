"""The settings as a table in Markdown: documentation that cannot differ from the declarations."""

from __future__ import annotations

from enum import Enum
from typing import Any

from felixpy.config.settings import DECLARATIONS, DEFAULTS, Declaration, Settings
from felixpy.config.values import MARK_MASK


def settings_table_markdown() -> str:
    """One row per setting: name, environment variable, default, legal values, meaning."""
    rows = ["| Setting | Environment | Default | Values | Meaning |", "|---|---|---|---|---|"]
    for attribute, declaration in DECLARATIONS.items():
        cells = [
            declaration.name,
            f"`{declaration.variable}`",
            _default(DEFAULTS[attribute], declaration),
            declaration.parser.expected,
            declaration.doc + _remarks(declaration),
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _remarks(declaration: Declaration) -> str:
    """Our own and local only, in italics."""
    remarks = [
        *(
            f"in FelixConfiguration `{name[0].lower()}{name[1:]}`"
            for name in declaration.also
            if not declaration.local_only
        ),
        "our own" if declaration.ours else "",
        "environment and file only" if declaration.local_only else "",
    ]
    text = "; ".join(remark for remark in remarks if remark)
    return f" *({text})*" if text else ""


def _default(value: Any, declaration: Declaration) -> str:
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, bool):
        _, on, _, off, *_ = declaration.parser.expected.split("`")  # "`Enabled` or `Disabled`"
        return f"`{on if value else off}`"
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if declaration.parser is MARK_MASK:
        return f"`{value:#010x}`"
    if isinstance(value, float):
        return f"`{value:g}s`"
    if isinstance(value, tuple):
        return f"`{','.join(str(item) for item in value)}`"
    return f"`{value}`"


def shown(settings: Settings) -> dict[str, str]:
    """All settings as text by name, for people: secrets are left out, and said to be set or not."""
    found = {}
    for attribute, declaration in DECLARATIONS.items():
        value = getattr(settings, attribute)
        if declaration.secret:
            found[declaration.name] = "(set)" if value else ""
        else:
            found[declaration.name] = _default(value, declaration).strip("`")
    return found
