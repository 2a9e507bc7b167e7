"""A group of commands whose modules are imported when they are asked for, and whose help cuts nothing."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import click

from felixpy.interrupt import plain_interrupt


class Commands(click.Group):
    """``modules``: where each command is, under its own name, in the order of the help; ``command()`` adds others."""

    def __init__(self, *arguments: Any, modules: Mapping[str, str] | None = None, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self._modules = modules or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, without an import."""
        return [*self._modules, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported."""
        if cmd_name not in self._modules:
            return super().get_command(ctx, cmd_name)
        with plain_interrupt(), _without_collections():
            module = importlib.import_module(self._modules[cmd_name])
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The first paragraph of each command's help."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, _first_paragraph(command.help or "")) for name, command in commands.items() if command]
            )


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """What is imported stays: to look for garbage in it is a twentieth of an agent's start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _first_paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())
