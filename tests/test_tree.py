"""The gate's look at the tree: what it refuses, and that nothing of the kind is here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[1] / ".ci" / "check-tree"
KEY = "-----BEGIN {}PRIVATE KEY{}-----"  # put together, so that this file is none


def look(folder: Path | None = None) -> tuple[int, list[str]]:
    done = subprocess.run((CHECK, *((folder,) if folder else ())), capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    subprocess.run(("git", "init", "-q", tmp_path), check=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("all is well\n")
    (tmp_path / ".gitignore").write_text("*.pem\n")
    return tmp_path


def test_this_tree_holds_nothing_that_does_not_belong() -> None:
    assert look() == (0, [])


def test_a_tree_as_it_should_be(tree: Path) -> None:
    (tree / "ignored.pem").write_text(KEY.format("RSA ", ""))
    assert look(tree) == (0, [])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("docs/page.md", KEY.format("", ""), "docs/page.md: holds a private key"),
        ("docs/page.md", f"x: |\n  {KEY.format('EC ', '')}", "docs/page.md: holds a private key"),
        ("docs/page.md", KEY.format("OPENSSH ", ""), "docs/page.md: holds a private key"),
        ("docs/page.md", KEY.format("PGP ", " BLOCK"), "docs/page.md: holds a private key"),
        ("docs/k.key", "", "docs/k.key: has the name of a key"),
        ("k.pem", "", "k.pem: has the name of a key"),
        ("out.txt", "", "out.txt: not known at the root"),
        ("scratch/x.py", "", "scratch/x.py: not known at the root"),
        ("docs/page.md.orig", "", "docs/page.md.orig: looks like what a program left behind"),
        ("docs/trace.md", "x" * (2 << 20 | 1), "docs/trace.md: 2097153 bytes"),
    ],
)
@pytest.mark.parametrize("added", [True, False], ids=["added", "untracked"])
def test_what_is_refused(tree: Path, name: str, content: str, said: str, added: bool) -> None:
    (tree / name).parent.mkdir(exist_ok=True)
    (tree / name).write_text(content)
    (tree / ".gitignore").unlink()
    if added:
        subprocess.run(("git", "-C", tree, "add", "."), check=True)
    code, lines = look(tree)
    assert code == 1
    assert any(line.startswith(said) for line in lines), lines
