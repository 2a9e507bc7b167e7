"""Endpoint-status files: Felix's names and content, whole or not at all, nothing before the first complete apply."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from felixpy.model.net import Net
from felixpy.model.resources import Kind, ResourceKey, WorkloadEndpoint
from felixpy.observe.endpoint_files import FILES_PER_FLUSH, FOLDER, RETRY_SECONDS, EndpointFiles, content, file_name
from tests.kernel import Clock


def endpoint(pod: str = "pod--a", *, interface: str = "cali1", name: str = "") -> WorkloadEndpoint:
    key = ResourceKey(Kind.WORKLOAD_ENDPOINT, name or f"node1-k8s-{pod}-eth0", "default")
    addresses = (Net.parse("10.48.0.1/32"), Net.parse("fd00:48::1/128"))
    return WorkloadEndpoint(key, "node1", interface, addresses, bytes.fromhex("eeeeeeeeeeee"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("node1-k8s-pod--a-eth0", "k8s default%2Fpod-a eth0"),
        ("my--node-k8s-web-net1", "k8s default%2Fweb net1"),
        ("node1-openstack-vm 1-tap", "openstack vm%201 tap"),
        ("web", ""),
    ],
)
def test_names_are_felix_s(name: str, expected: str) -> None:
    assert file_name(endpoint(name=name)) == expected


def test_content_leaves_out_what_is_empty() -> None:
    assert json.loads(content(endpoint())) == {
        "ifaceName": "cali1",
        "mac": "ee:ee:ee:ee:ee:ee",
        "ipv4Nets": ["10.48.0.1/32"],
        "ipv6Nets": ["fd00:48::1/128"],
    }
    bare = WorkloadEndpoint(ResourceKey(Kind.WORKLOAD_ENDPOINT, "x", "y"), "n", "cali1", ())
    assert json.loads(content(bare)) == {"ifaceName": "cali1"}


def test_files_come_after_the_first_complete_apply_and_stale_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    right, stale = folder / "k8s default%2Fpod-a eth0", folder / "k8s default%2Fgone eth0"
    right.write_bytes(content(endpoint()))
    stale.write_text("{}")
    (folder / ".felixpy-1").write_text("half")
    before = right.stat()
    files = EndpointFiles(tmp_path)
    files.set(endpoint().key, endpoint())
    files.set(endpoint("b").key, endpoint("b"))
    files.flush()
    assert stale.exists()
    files.start()
    files.flush()
    assert sorted(path.name for path in folder.iterdir()) == ["k8s default%2Fb eth0", right.name]
    assert right.stat().st_mtime_ns == before.st_mtime_ns, "what is right is left alone"
    assert stat.S_IMODE((folder / "k8s default%2Fb eth0").stat().st_mode) == 0o644
    files.set(endpoint().key, endpoint(interface="cali2"))
    files.set(endpoint("b").key, None)
    files.flush()
    assert [path.name for path in folder.iterdir()] == [right.name]
    assert json.loads(right.read_bytes())["ifaceName"] == "cali2"


def test_off_writes_nothing_and_another_prefix_takes_the_files_along(tmp_path: Path) -> None:
    files = EndpointFiles(None)
    files.set(endpoint().key, endpoint())
    files.start()
    files.flush()
    assert list(tmp_path.iterdir()) == []
    files.use(tmp_path / "late")
    files.flush()
    assert len(list((tmp_path / "late" / FOLDER).iterdir())) == 1
    files = EndpointFiles(tmp_path / "one")
    files.start()
    files.set(endpoint().key, endpoint())
    files.flush()
    files.use(tmp_path / "two")
    files.flush()
    assert list((tmp_path / "one" / FOLDER).iterdir()) == []
    assert len(list((tmp_path / "two" / FOLDER).iterdir())) == 1


@pytest.mark.parametrize("other", ["two", ""])
def test_no_file_stays_at_a_prefix_that_is_left(tmp_path: Path, other: str) -> None:
    """However many there are: nobody looks at the folder again."""
    files = EndpointFiles(tmp_path / "one")
    files.start()
    for number in range(2 * FILES_PER_FLUSH):
        one = endpoint(f"pod{number}")
        files.set(one.key, one)
    files.flush()
    files.flush()
    assert len(list((tmp_path / "one" / FOLDER).iterdir())) == 2 * FILES_PER_FLUSH
    files.use(tmp_path / other if other else None)
    assert list((tmp_path / "one" / FOLDER).iterdir()) == []


def test_a_failure_is_said_once_and_tried_again(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / FOLDER).write_text("in the way")
    with capture_logs() as logs:
        files = EndpointFiles(tmp_path, clock)
        files.start()
        files.set(endpoint().key, endpoint())
        for _ in range(5):
            files.flush()
            clock.now += RETRY_SECONDS
        assert len(logs) == len({line["reason"] for line in logs}) <= 2
        assert str(tmp_path) in logs[0]["reason"]
        assert files.next_retry() <= clock()
        (tmp_path / FOLDER).unlink()
        files.flush()
    assert [line["log_level"] for line in logs][-2:] == ["warning", "info"]
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    assert files.next_retry() == float("inf")


def test_many_files_are_written_a_few_at_a_time(tmp_path: Path) -> None:
    files = EndpointFiles(tmp_path)
    files.start()
    for number in range(3 * FILES_PER_FLUSH):
        one = endpoint(f"p{number}")
        files.set(one.key, one)
    for written in range(1, 4):
        assert files.next_retry() <= 0.0
        files.flush()
        assert len(list((tmp_path / FOLDER).iterdir())) == written * FILES_PER_FLUSH
    assert files.next_retry() == float("inf")
