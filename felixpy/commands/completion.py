"""Completion in bash, zsh and fish: the script of the shell that called, printed or put where that shell looks."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.exceptions import Exit

from felixpy.commands.errors import CommandError, plain_errors

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_FELIXPY_COMPLETE"  # click's name for it: the script asks by this variable what comes next


def _shell() -> str:
    """The shell that this was called from, maybe through sudo; else the user's own.

    Raises:
        CommandError: it is none for which there is a script.
    """
    process = os.getppid()
    while process > 1:
        name, _, rest = Path(f"/proc/{process}/stat").read_text().partition("(")[2].rpartition(")")
        if name in SHELLS:
            return name
        process = int(rest.split()[1])
    name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise CommandError(f"completion is for {', '.join(SHELLS)}; call this from one of them")
    return name


def _script(shell: str) -> str:
    from click.shell_completion import get_completion_class  # 3 ms that every other command need not pay

    found = get_completion_class(shell)
    assert found is not None
    context = click.get_current_context()
    return found(context.command, {}, "felixpy", VARIABLE).source()


def _show(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        with plain_errors():
            click.echo(_script(_shell()))
        raise Exit


def _install(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        with plain_errors():
            shell = _shell()
            place = install_for(shell, _script(shell))
            click.echo(f"{shell} completion is in {place}; it works in the next {shell}")
        raise Exit


def install_for(shell: str, script: str) -> Path:
    """Write the script to a file of the user's own, and let the shell read it. Again is the same as once."""
    home = Path.home()
    if shell == "bash":
        place = home / ".bash_completions/felixpy.sh"
        _line_in(home / ".bashrc", f"source '{place}'")
    elif shell == "zsh":
        place = home / ".zfunc/_felixpy"
        _line_in(home / ".zshrc", "fpath+=~/.zfunc; autoload -Uz compinit; compinit")
    else:
        place = home / ".config/fish/completions/felixpy.fish"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{script}\n")
    return place


def _line_in(file: Path, line: str) -> None:
    text = file.read_text() if file.exists() else ""
    if line not in text.splitlines():
        with file.open("a") as end:
            end.write(f"{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n")


show = click.option(
    "--show-completion",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show,
    help="Show completion for the current shell, to copy it or customize the installation.",
)
install = click.option(
    "--install-completion",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_install,
    help="Install completion for the current shell.",
)
