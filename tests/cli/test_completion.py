"""Completion in bash, zsh and fish: what the shells ask and are told, and where the script is put."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from felixpy.commands import completion
from felixpy.demo.agent import FELIXPY, environment
from tests.cli.command import felixpy

ASKED = {
    "bash": {"_FELIXPY_COMPLETE": "bash_complete", "COMP_CWORD": "1"},
    "zsh": {"_FELIXPY_COMPLETE": "zsh_complete", "COMP_CWORD": "1"},
    "fish": {"_FELIXPY_COMPLETE": "fish_complete"},
}


@pytest.mark.parametrize("shell", ASKED)
@pytest.mark.parametrize(("begin", "expected"), [("con", ["connectivity"]), ("di", ["diag", "diff"])])
def test_names_of_commands_are_completed(shell: str, begin: str, expected: list[str]) -> None:
    words = begin if shell == "fish" else f"felixpy {begin}"
    done = felixpy(env={**ASKED[shell], "COMP_WORDS": words, **({"COMP_CWORD": begin} if shell == "fish" else {})})
    assert (done.code, done.err) == (0, "")
    assert [name for name in done.out.replace(",", "\n").split() if name in expected] == expected
    assert "apply" not in done.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [("felixpy show ro", "plain,routes"), ("felixpy ipam re", "plain,release"), ("felixpy apply -f x", "file,x")],
)
def test_values_commands_of_commands_and_files_are_completed(words: str, expected: str) -> None:
    count = str(words.count(" "))
    done = felixpy(env={**ASKED["bash"], "COMP_WORDS": words, "COMP_CWORD": count})
    assert done.out.split() == [expected]


def test_bash_finds_the_installed_script(tmp_path: Path) -> None:
    rc = tmp_path / ".bashrc"
    rc.write_text("a=1")  # no line end
    for _ in range(2):
        called_from("bash", tmp_path, "--install-completion")
    script = tmp_path / ".bash_completions/felixpy.sh"
    assert rc.read_text() == f"a=1\nsource '{script}'\n"
    done = subprocess.run(("bash", "-c", f". {rc}; complete -p felixpy"), capture_output=True, text=True, check=True)
    assert "_felixpy_completion" in done.stdout
    assert called_from("bash", tmp_path, "--show-completion") == script.read_text()


def test_zsh_and_fish_find_the_installed_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for shell in ("zsh", "fish") * 2:
        completion.install_for(shell, f"script of {shell}")
    assert (tmp_path / ".zshrc").read_text() == "fpath+=~/.zfunc; autoload -Uz compinit; compinit\n"
    assert (tmp_path / ".zfunc/_felixpy").read_text() == "script of zsh\n"
    assert (tmp_path / ".config/fish/completions/felixpy.fish").read_text() == "script of fish\n"


def called_from(shell: str, home: Path, option: str) -> str:
    """What a call from a shell prints; ``true`` keeps the shell from becoming the command."""
    command = f"{' '.join(FELIXPY)} {option}; true"
    variables = environment({"HOME": str(home), "SHELL": "/bin/sh"})
    return subprocess.run((shell, "-c", command), env=variables, capture_output=True, text=True, check=True).stdout
