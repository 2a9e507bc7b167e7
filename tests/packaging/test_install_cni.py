"""What the init container puts into the host's folder of plugins, over what is there, and what a removal leaves."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "config" / "kubernetes" / "install-cni"


class Host:
    """The folder of an image and that of a host."""

    def __init__(self, folder: Path) -> None:
        self.image, self.bin = folder / "image", folder / "bin"
        self.image.mkdir()
        self.bin.mkdir()
        self.ship("felixpy-cni", "ours 1")

    def ship(self, name: str, content: str) -> None:
        (self.image / name).write_text(content)

    def run(self, *options: str) -> None:
        environ = {**os.environ, "FELIXPY_PLUGINS": str(self.image)}
        subprocess.run(("sh", str(SCRIPT), *options, str(self.bin)), env=environ, check=True)

    def content(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.bin.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_plugins_come_are_replaced_and_go(host: Host) -> None:
    host.ship("portmap", "upstream 1")
    host.run()
    assert host.content() == {"felixpy-cni": "ours 1", "portmap": "upstream 1"}
    assert all(path.stat().st_mode & 0o777 == 0o755 for path in host.bin.glob("[!.]*"))
    host.ship("felixpy-cni", "ours 2")
    host.ship("portmap", "upstream 2")
    host.run()
    assert host.content() == {"felixpy-cni": "ours 2", "portmap": "upstream 2"}
    host.run("--remove")
    assert list(host.bin.iterdir()) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_portmap_of_somebody_else_stays(host: Host, when: str) -> None:
    host.ship("portmap", "upstream 1")
    if when == "after":
        host.run()
    (host.bin / "portmap").write_text("kubeadm's")
    host.run()
    assert host.content() == {"felixpy-cni": "ours 1", "portmap": "kubeadm's"}
    host.run("--remove")
    assert host.content() == {"portmap": "kubeadm's"}


def test_an_image_without_portmap_leaves_that_of_an_earlier_one(host: Host) -> None:
    host.ship("portmap", "upstream 1")
    host.run()
    (host.image / "portmap").unlink()
    host.run()
    assert host.content() == {"felixpy-cni": "ours 1", "portmap": "upstream 1"}
    host.run("--remove")
    assert host.content() == {}
