"""etcd and an API server in a network namespace of their own, into which each test goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from felixpy.kubernetes.access import Identity, Material, from_kubeconfig
from tests.netns import current_network, return_to_network

CLUSTER = Path(__file__).resolve().parents[1] / "cluster"
MANIFESTS = Path(__file__).resolve().parents[3] / "config" / "kubernetes"
CONTROLLERS = shutil.which("kube-controllers", path=os.environ.get("CALICO", ""))
NO_CONTROLLERS = "CALICO names no folder with Calico's kube-controllers"

collect_ignore = [] if CONTROLLERS else ["test_controllers.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not CONTROLLERS:
        terminalreporter.write_line(f"test_controllers.py: not run: {NO_CONTROLLERS}")


class Server(NamedTuple):
    """A running API server: the folder of its cluster, and its administrator."""

    run: Path
    admin: Identity

    def script(self, *command: str) -> str:
        done = subprocess.run(
            (str(CLUSTER / command[0]), *command[1:]), env=self.environ(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def environ(self) -> dict[str, str]:
        return os.environ | {"RUN": str(self.run)}

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        done = self.try_kubectl(*arguments, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def try_kubectl(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        command = f'. "{CLUSTER}/env.sh"; kubectl "$@"'
        return subprocess.run(
            ("bash", "-c", command, "kubectl", *arguments), env=self.environ(), input=given,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def apply(self, *objects: dict[str, Any]) -> None:
        listing = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--server-side", "-f", "-", given=msgspec.json.encode(listing).decode())

    def agent(self) -> Identity:
        """The service account of the manifests, with its rights and no more."""
        token = self.kubectl("-n", "felixpy", "create", "token", "felixpy")
        return Identity(self.admin.server, self.admin.ca, Material(text=token))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    run = tmp_path_factory.mktemp("api") / f"fpa{uuid.uuid4().hex[:6]}"
    run.mkdir()
    environ = os.environ | {"RUN": str(run)}
    try:
        started = subprocess.run(
            (CLUSTER / "control.sh", "apiserver"), env=environ, capture_output=True, text=True, check=False
        )
        assert started.returncode == 0, started.stdout + started.stderr
        found = Server(run, from_kubeconfig(run / "kubeconfig"))
        found.kubectl("apply", "-k", str(MANIFESTS))
        found.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield found
    finally:
        subprocess.run((CLUSTER / "down.sh",), env=environ, capture_output=True, check=False)


@pytest.fixture(autouse=True)
def _in_its_network(server: Server) -> Iterator[None]:
    before = current_network()
    namespace = os.open(f"/run/netns/{server.run.name}-cp", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return_to_network(namespace)
        yield
    finally:
        return_to_network(before)
        os.close(namespace)
        os.close(before)
