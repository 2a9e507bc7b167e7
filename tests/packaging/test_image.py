"""The Dockerfile is built by buildah, and the agent runs from that image with the rights that the DaemonSet gives it.

The base is a tree of debootstrap: no registry is asked. The build has the machine's network, the agent none.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from felixpy.demo.patience import Patience
from tests.packaging.debian import OWN_NAMESPACES, ROOT, debian_tree
from tests.packaging.test_service import MANIFESTS

# $1 tree of the image. The second workload comes after the host's settings were made.
RUN = """
set -e
ip link set lo up
ip link add eth0 type veth peer name peer0 && ip link set peer0 up && ip link set eth0 up
ip addr add 192.0.2.1/24 dev eth0 && ip addr add 2001:db8::1/64 dev eth0 nodad
ip route add default via 192.0.2.254
ip link add cali1 type veth peer name peer1 && ip link set peer1 up && ip link set cali1 up
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount -t tmpfs tmpfs "$1/run"
mount -t tmpfs tmpfs "$1/tmp"
chroot "$1" felixpy-host-settings
ip link add cali2 type veth peer name peer2 && ip link set peer2 up && ip link set cali2 up
# In the machine's own network an interface begins with neigh/default; in any other one with the kernel's value.
echo 0 >/proc/sys/net/ipv4/neigh/cali2/proxy_delay
echo "127.0.0.1 localhost" >"$1/etc/hosts"
mount --bind "$1/proc/sys" "$1/proc/sys"
mount -o remount,bind,ro "$1/proc/sys"
mount -o remount,bind,ro "$1"
exec chroot "$1" setpriv --bounding-set=-all,+net_admin,+net_raw --inh-caps=-all --no-new-privs felixpy run
"""


class Image(NamedTuple):
    """A built image: its tree, and what buildah says of it."""

    tree: Path
    configuration: dict[str, Any]


@pytest.fixture(scope="module", params=["machine"])
def image(tmp_path_factory: pytest.TempPathFactory, machine_network: int) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("image")
    try:
        with debian_tree("base") as base:
            done = subprocess.run(
                ("nsenter", f"--net=/proc/self/fd/{machine_network}", "setpriv", "--pdeathsig=KILL", *OWN_NAMESPACES,
                 "sh", str(ROOT / "tests/packaging/image.sh"), str(base.parent), str(folder)),
                pass_fds=(machine_network,), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr + (folder / "log").read_text()[-4000:]
        yield Image(folder / "tree", json.loads((folder / "inspect.json").read_text())["Docker"]["config"])
    finally:
        shutil.rmtree(folder)


def inside(image: Image, *command: str) -> str:
    return subprocess.run(("chroot", str(image.tree), *command), capture_output=True, text=True, check=True).stdout


def test_it_has_labels_a_health_check_and_no_compiler(image: Image) -> None:
    labels = image.configuration["Labels"]
    assert labels["org.opencontainers.image.title"] == "felixpy"
    assert f"felixpy {labels['org.opencontainers.image.version']}\n" == inside(
        image, "/opt/felixpy/bin/felixpy", "version"
    )
    assert image.configuration["Entrypoint"] == ["felixpy"]
    packages = inside(image, "dpkg-query", "-W", "-f", "${Package}\n").split()
    compiler = [name for name in packages if name.startswith(("gcc", "cpp", "python3-dev", "libc6-dev", "make"))]
    assert compiler == ["gcc-12-base"]  # an empty package that the C library wants
    assert not (image.tree / "opt/felixpy/bin/pip").exists()


def test_installed_versions_are_the_pinned_ones(image: Image) -> None:
    pinned = {line.lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    command = "import importlib.metadata as m; [print(d.name + '==' + d.version) for d in m.distributions()]"
    installed = inside(image, "/opt/felixpy/bin/python3", "-c", command).lower().replace("_", "-").split()
    ours = {line for line in installed if not line.startswith("felixpy==")}
    assert ours == pinned


def test_the_agent_runs_with_two_capabilities_and_a_read_only_system(image: Image, tmp_path: Path) -> None:
    manifests = image.tree / "etc/felixpy/resources"
    manifests.mkdir(parents=True, exist_ok=True)
    second = MANIFESTS.split("---")[-1].replace("web", "x").replace("cali1", "cali2")
    second = second.replace("10.48.0.1", "10.48.0.2").replace("::1/", "::2/")
    (manifests / "x.yaml").write_text(f"{MANIFESTS}---{second}")
    settings = dict(each.split("=", 1) for each in image.configuration["Env"])
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ("setpriv", "--pdeathsig=KILL", *OWN_NAMESPACES, "--net", "/bin/sh", "-c", RUN, "run", str(image.tree)),
            env={**settings, "NODENAME": "n1"}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        patience = Patience(30)
        while "READY" not in health(process, "readiness"):
            assert process.poll() is None, log.read_text()
            assert not patience.over(), log.read_text()
            time.sleep(0.2)
        check = image.configuration["Healthcheck"]["Test"]
        assert check[0] == "CMD"
        assert entered(process, *check[1:]).returncode == 0
        for family, address in (("-4", "10.48.0.1"), ("-6", "fd00:48::2")):
            assert address in entered(process, "ip", family, "route").stdout
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        assert [line for line in lines if line["level"] in ("warning", "error")] == []
    finally:
        process.kill()
        process.wait()


def entered(process: subprocess.Popen[bytes], *command: str) -> subprocess.CompletedProcess[str]:
    """A command in the container."""
    child = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().strip()
    return subprocess.run(
        ("nsenter", f"--target={child}", "--all", "--root", "--wd", *command),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def health(process: subprocess.Popen[bytes], what: str) -> str:
    code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:9099/{what}').read().decode().upper())"
    return entered(process, "python3", "-c", code).stdout
