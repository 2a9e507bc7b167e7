"""The network configuration of container runtimes: what is written, when it is there, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from felixpy.cni.conflist import (
    GONE_SECONDS,
    BadNetworkConfiguration,
    ConflistWriter,
    default_conflist,
    given_conflist,
)
from felixpy.cni.errors import CniError
from felixpy.cni.programming import NodeState
from felixpy.cni.request import parse_configuration
from felixpy.model.net import FAMILIES, Family

SOCKET = Path("/run/felixpy/cni.sock")

CALICO: dict[str, Any] = {
    "name": "k8s-pod-network",
    "cniVersion": "0.3.1",
    "plugins": [
        {
            "type": "calico",
            "log_level": "info",
            "datastore_type": "kubernetes",
            "nodename": "n1",
            "mtu": 1440,
            "feature_control": {"floating_ips": True},
            "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
            "policy": {"type": "k8s"},
            "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
        },
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
    ],
}


def test_default_for_the_families_of_the_node() -> None:
    for families in ([Family.V4], [Family.V6], list(FAMILIES)):
        written = json.loads(default_conflist(SOCKET, families))
        parsed = parse_configuration({**written["plugins"][0], "name": written["name"], "cniVersion": "1.0.0"})
        assert list(parsed.ipam.families) == families
    with pytest.raises(BadNetworkConfiguration, match="no range"):
        default_conflist(SOCKET, [])


def test_a_configuration_of_calico_serves_as_it_is() -> None:
    written = json.loads(given_conflist(json.dumps(CALICO).encode(), SOCKET))
    assert written["plugins"][0] == {
        "type": "felixpy-cni",
        "socket": str(SOCKET),
        "mtu": 1440,
        "feature_control": {"floating_ips": True},
        "ipam": CALICO["plugins"][0]["ipam"],
    }
    assert written["plugins"][1] == CALICO["plugins"][1]


def test_the_template_of_calicos_manifest_serves_before_its_installer_has_filled_it_in() -> None:
    template = json.dumps(CALICO).replace("1440", "__CNI_MTU__").replace('"n1"', '"__KUBERNETES_NODE_NAME__"')
    written = json.loads(given_conflist(template.encode(), SOCKET))
    assert written["plugins"][0]["mtu"] == 0  # the agent's
    assert "__" not in json.dumps(written)


def test_whether_pods_may_ask_for_floating_addresses() -> None:
    plugin = {"name": "n", "cniVersion": "1.0.0", "type": "felixpy-cni", "ipam": {"type": "felixpy-ipam"}}
    assert not parse_configuration(plugin).floating
    assert parse_configuration({**plugin, "feature_control": {"floating_ips": True, "ip_addrs_no_ipam": True}}).floating
    with pytest.raises(CniError, match=r"feature_control\.floating_ips"):
        parse_configuration({**plugin, "feature_control": {"floating_ips": "yes"}})


def test_a_plugin_alone_becomes_a_list() -> None:
    alone = {"name": "net", "cniVersion": "1.0.0", "type": "felixpy-cni", "ipam": {"type": "felixpy-ipam"}}
    written = json.loads(given_conflist(json.dumps(alone).encode(), SOCKET))
    assert written["name"] == "net"
    assert [plugin["type"] for plugin in written["plugins"]] == ["felixpy-cni"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "an object"),
        ('{"name": "n", "cniVersion": "1.0.0", "plugins": 3}', "a list"),
        ('{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}', "felixpy-cni"),
        ('{"name": "n", "cniVersion": "9", "plugins": [{"type": "felixpy-cni"}]}', "cniVersion '9'"),
        (
            '{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "felixpy-cni", "ipam": {"type": "dhcp"}}]}',
            "ipam.type 'dhcp'",
        ),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(BadNetworkConfiguration, match=reason):
        given_conflist(text.encode(), SOCKET)


def test_it_comes_with_readiness_and_goes_a_while_after_it(tmp_path: Path) -> None:
    state = NodeState(cannot="not yet")
    path = tmp_path / "net.d" / "10-felixpy.conflist"
    writer = ConflistWriter(path, lambda: state, lambda: b"content")
    writer.look(0.0)
    assert not path.exists()
    state = NodeState()
    writer.look(1.0)
    assert path.read_bytes() == b"content"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    writer.look(2.0)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before, "what is right is not written again"
    path.write_bytes(b"somebody else's")
    writer.look(3.0)
    assert path.read_bytes() == b"content"
    state = NodeState(cannot="gone")
    writer.look(10.0)
    writer.look(10.0 + GONE_SECONDS - 0.1)
    assert path.exists(), "a short while without readiness makes no node NotReady"
    writer.look(10.0 + GONE_SECONDS)
    assert not path.exists()
    assert [file.name for file in path.parent.iterdir()] == []


def test_before_the_node_was_ready_only_a_file_of_an_earlier_boot_goes(tmp_path: Path) -> None:
    """A restart while the API is away must not make the node NotReady."""
    path = tmp_path / "10-felixpy.conflist"
    path.write_bytes(b"of the agent before")
    writer = ConflistWriter(path, lambda: NodeState(cannot="the API is away"), lambda: b"content")
    for now in (0.0, 100.0):
        writer.look(now)
        assert path.exists()
    os.utime(path, (1.0, 1.0))
    writer.look(200.0)
    assert not path.exists()


def test_a_bad_template_leaves_what_stands(tmp_path: Path) -> None:
    path = tmp_path / "10-felixpy.conflist"
    path.write_bytes(b"before")

    def content() -> bytes:
        raise BadNetworkConfiguration("it is not JSON")

    writer = ConflistWriter(path, NodeState, content)
    writer.look(0.0)
    assert path.read_bytes() == b"before"
