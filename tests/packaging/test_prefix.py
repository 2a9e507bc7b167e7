"""``make install`` and ``make uninstall`` touch no folder that is not felixpy's own, whatever PREFIX says.

A stand-in for Python makes an environment without packages: what pip does is tried on booted machines.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.packaging.debian import ROOT

PYTHON = """#!/bin/sh
# python -m venv FOLDER, and python -m pip install
[ "$2" = venv ] || { echo '#!/usr/bin/python3' >"$(dirname "$0")/felixpy"; exit; }
mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" "$3/bin/pip" && cp "$0" "$3/bin/python" && chmod +x "$3/bin/pip"
"""


def make(target: str, folder: Path, prefix: str, *more: str) -> subprocess.CompletedProcess[str]:
    python = folder / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    where = f"DESTDIR={folder / 'root'}", f"PREFIX={prefix}", f"SYSTEM_PYTHON={python}"
    return subprocess.run(
        ("make", "--no-print-directory", target, *where, *more), cwd=ROOT, capture_output=True, text=True, check=False
    )


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode, done.stdout
    return done.stderr.splitlines()[0]


def foreign(root: Path, prefix: str) -> set[str]:
    """A folder that somebody else uses, with a Python environment in it."""
    (root / prefix / "bin").mkdir(parents=True)
    for name in ("pyvenv.cfg", "bin/pip", "bin/theirs"):
        (root / prefix / name).write_text("")
    return tree(root)


def test_what_install_makes_uninstall_removes_also_after_a_second_one(tmp_path: Path) -> None:
    for _ in range(2):
        assert make("install", tmp_path, "/opt/felixpy").returncode == 0
    assert (tmp_path / "root/opt/felixpy/bin/felixpy").exists()
    assert make("uninstall", tmp_path, "/opt/felixpy").returncode == 0
    assert not (tmp_path / "root/opt/felixpy").exists()
    assert make("uninstall", tmp_path, "/opt/felixpy").returncode == 0
    assert {path for path in tree(tmp_path / "root") if "felixpy" in path} == {
        "etc/default/felixpy", "etc/felixpy", "etc/felixpy/felixpy.toml", "etc/felixpy/resources"
    }  # fmt: skip


def test_an_installation_that_broke_off_is_taken_up_again(tmp_path: Path) -> None:
    assert make("install", tmp_path, "/opt/felixpy", "SYSTEM_PYTHON=false").returncode
    assert make("install", tmp_path, "/opt/felixpy").returncode == 0
    assert make("uninstall", tmp_path, "/opt/felixpy").returncode == 0


@pytest.mark.parametrize("target", ["install", "uninstall"])
def test_a_folder_of_others_stays_as_it_is(target: str, tmp_path: Path) -> None:
    before = foreign(tmp_path / "root", "usr/local")
    assert "'make install' did not make it" in sentence(make(target, tmp_path, "/usr/local"))
    assert tree(tmp_path / "root") == before


def test_a_mark_alone_does_not_make_a_folder_ours(tmp_path: Path) -> None:
    folder = tmp_path / "root/opt/felixpy"
    folder.mkdir(parents=True)
    (folder / ".felixpy-prefix").touch()
    assert "no pyvenv.cfg" in sentence(make("uninstall", tmp_path, "/opt/felixpy"))
    assert folder.exists()


@pytest.mark.parametrize("target", ["install", "uninstall"])
@pytest.mark.parametrize(
    "prefix", ["", "/", "/usr", "usr/local/x", "/opt/../usr/x", "/opt/a b", "/opt/felixpy/..", "//usr/"]
)
def test_a_prefix_that_cannot_be_a_folder_of_its_own_is_refused(target: str, prefix: str, tmp_path: Path) -> None:
    before = foreign(tmp_path / "root", "usr")
    assert f"make {target}: PREFIX '{prefix}'" in sentence(make(target, tmp_path, prefix))
    assert tree(tmp_path / "root") == before
