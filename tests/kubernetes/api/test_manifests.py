"""What ``config/kubernetes`` has besides the network itself is taken by an API server."""

from __future__ import annotations

import pytest

from tests.kubernetes.api.conftest import MANIFESTS, Server


@pytest.mark.parametrize("overlay", ["mqtt", "try"])
def test_an_overlay_for_a_broker_is_taken(server: Server, overlay: str) -> None:
    folder = str(MANIFESTS / overlay)
    taken = server.kubectl("apply", "-k", folder, "--server-side", "--force-conflicts", "--dry-run=server")
    assert "daemonset.apps/felixpy serverside-applied (server dry run)" in taken


def test_the_clean_up_is_taken_and_deleted(server: Server) -> None:
    """For real: a dry run makes no namespace, and what is in it could not be tried."""
    folder = str(MANIFESTS / "cleanup")
    assert "daemonset.apps/felixpy-cleanup created" in server.kubectl("apply", "-k", folder)
    server.kubectl("delete", "-k", folder, "--wait=false")
