"""Endpoint-status files: Felix's names and content, whole or not at all, nothing before the first complete apply."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from felixpy.model.net import Net
from felixpy.model.resources import Kind, ResourceKey, WorkloadEndpoint
from felixpy.observe.endpoint_files import FILES_PER_FLUSH, RETRY_SECONDS, EndpointFiles, content, file_name
from felixpy.observe.endpoint_folders import FOLDER, MARK, Folders, describe, empty, write_whole
from tests.kernel import Clock, run


def endpoint(pod: str = "pod--a", *, interface: str = "cali1", name: str = "") -> WorkloadEndpoint:
    key = ResourceKey(Kind.WORKLOAD_ENDPOINT, name or f"node1-k8s-{pod}-eth0", "default")
    addresses = (Net.parse("10.48.0.1/32"), Net.parse("fd00:48::1/128"))
    return WorkloadEndpoint(key, "node1", interface, addresses, bytes.fromhex("eeeeeeeeeeee"))


def names(folder: Path) -> list[str]:
    """The files that a CNI plugin may wait for."""
    return sorted(path.name for path in folder.iterdir() if path.name != MARK)


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
    assert names(folder) == ["k8s default%2Fb eth0", right.name]
    assert json.loads((folder / MARK).read_text()), "whoever reads every file of the folder finds JSON"
    assert right.stat().st_mtime_ns == before.st_mtime_ns, "what is right is left alone"
    assert stat.S_IMODE((folder / "k8s default%2Fb eth0").stat().st_mode) == 0o644
    files.set(endpoint().key, endpoint(interface="cali2"))
    files.set(endpoint("b").key, None)
    files.flush()
    assert names(folder) == [right.name]
    assert json.loads(right.read_bytes())["ifaceName"] == "cali2"


def test_off_writes_nothing_and_another_prefix_takes_the_files_along(tmp_path: Path) -> None:
    files = EndpointFiles(None)
    files.set(endpoint().key, endpoint())
    files.start()
    files.flush()
    assert list(tmp_path.iterdir()) == []
    files.use(tmp_path / "late")
    files.flush()
    assert len(names(tmp_path / "late" / FOLDER)) == 1
    files = EndpointFiles(tmp_path / "one")
    files.start()
    files.set(endpoint().key, endpoint())
    files.flush()
    files.use(tmp_path / "two")
    files.flush()
    assert not (tmp_path / "one" / FOLDER).exists()
    assert len(names(tmp_path / "two" / FOLDER)) == 1


@pytest.mark.parametrize("other", ["two", ""])
def test_no_file_stays_at_a_prefix_that_is_left(tmp_path: Path, other: str) -> None:
    """However many there are, a few at a time."""
    files = EndpointFiles(tmp_path / "one")
    files.start()
    for number in range(2 * FILES_PER_FLUSH):
        one = endpoint(f"pod{number}")
        files.set(one.key, one)
    files.flush()
    files.flush()
    assert len(names(tmp_path / "one" / FOLDER)) == 2 * FILES_PER_FLUSH
    files.use(tmp_path / other if other else None)
    files.flush()
    assert len(names(tmp_path / "one" / FOLDER)) == FILES_PER_FLUSH
    assert files.next_retry() == 0.0
    files.flush()
    assert not (tmp_path / "one" / FOLDER).exists()
    files.flush()
    assert files.next_retry() == float("inf")


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
    assert len(names(tmp_path / FOLDER)) == 1
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
        assert len(names(tmp_path / FOLDER)) == written * FILES_PER_FLUSH
    assert files.next_retry() == float("inf")


IN_THE_WAY = {
    "a name that is too long": lambda folder, name: None,
    "a folder in its place": lambda folder, name: (folder / name).mkdir(parents=True),
}


@pytest.mark.parametrize("way", IN_THE_WAY)
def test_a_file_that_cannot_be_written_delays_no_other(tmp_path: Path, way: str) -> None:
    clock = Clock()
    files = EndpointFiles(tmp_path, clock)
    told: list[tuple[ResourceKey, bool]] = []
    files.told = lambda key: told.append((key, bool(files.reason_of(key))))
    bad = endpoint("a" * 250 if "long" in way else "bad")
    IN_THE_WAY[way](tmp_path / FOLDER, file_name(bad))
    files.start()

    def written() -> int:
        return len([path for path in (tmp_path / FOLDER).iterdir() if path.is_file() and path.name != MARK])

    with capture_logs() as logs:
        files.set(bad.key, bad)
        for number in range(3 * FILES_PER_FLUSH):
            one = endpoint(f"p{number}")
            files.set(one.key, one)
            files.flush()
        while files.next_retry() <= clock():
            files.flush()
        assert written() == 3 * FILES_PER_FLUSH
        assert files.next_retry() == clock() + RETRY_SECONDS
        for number in range(3):
            one = endpoint(f"late{number}")
            files.set(one.key, one)
            files.flush()
            assert written() == 3 * FILES_PER_FLUSH + number + 1
            clock.now += RETRY_SECONDS * 0.7
        assert [line["log_level"] for line in logs] == ["warning"]
        assert file_name(bad) in logs[0]["reason"]
        assert told == [(bad.key, True)]
        assert ("give the workload or its endpoint a shorter name" in files.reason_of(bad.key)) == ("long" in way)
        files.set(bad.key, None)
        assert files.reason_of(bad.key) == ""
        files.flush()
    assert [line["log_level"] for line in logs] == ["warning", "info"]
    assert files.next_retry() == float("inf")


def test_a_file_that_could_not_be_written_comes_when_it_can(tmp_path: Path) -> None:
    clock = Clock()
    files = EndpointFiles(tmp_path, clock)
    told: list[str] = []
    files.told = lambda key: told.append(files.reason_of(key))
    (tmp_path / FOLDER / file_name(endpoint())).mkdir(parents=True)
    files.set(endpoint().key, endpoint())
    files.start()
    with capture_logs() as logs:
        files.flush()
        (tmp_path / FOLDER / file_name(endpoint())).rmdir()
        files.flush()
        assert names(tmp_path / FOLDER) == []
        clock.now = files.next_retry()
        files.flush()
    assert names(tmp_path / FOLDER) == [file_name(endpoint())]
    assert [bool(reason) for reason in told] == [True, False]
    assert [line["log_level"] for line in logs] == ["warning", "info"]
    assert files.next_retry() == float("inf")


# --- earlier runs ----------------------------------------------------------------------------------------------------


def run_at(prefix: Path | None, folders: Folders, *pods: str) -> EndpointFiles:
    """A run that became complete with these endpoints."""
    files = EndpointFiles(prefix, folders=folders)
    for pod in pods:
        files.set(endpoint(pod).key, endpoint(pod))
    files.start()
    while files.next_retry() == 0.0:
        files.flush()
    return files


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "run" / "felixpy.endpoint-status")


@pytest.mark.parametrize("later", ["two", ""])
def test_a_start_with_another_prefix_removes_what_an_earlier_run_left(
    tmp_path: Path, folders: Folders, later: str
) -> None:
    old = tmp_path / "one" / FOLDER
    run_at(tmp_path / "one", folders, "a", "b")
    files = EndpointFiles(tmp_path / later if later else None, folders=folders)
    files.flush()
    assert len(names(old)) == 2, "true until the first complete apply"
    run_at(tmp_path / later if later else None, folders, "a")
    assert not old.exists()
    assert folders.ours() == ([tmp_path / later / FOLDER] if later else [])
    assert (tmp_path / "run" / "felixpy.endpoint-status").exists() == bool(later)


def test_files_of_another_program_stay(tmp_path: Path, folders: Folders) -> None:
    """Felix removes our mark when it takes the folder over; a folder that never was ours has none."""
    run_at(tmp_path / "one", folders, "a")
    (tmp_path / "one" / FOLDER / MARK).unlink()
    run_at(None, folders)
    assert names(tmp_path / "one" / FOLDER) == ["k8s default%2Fa eth0"]
    beside = Folders(None, [tmp_path / "one" / FOLDER])
    run_at(None, beside)
    assert names(tmp_path / "one" / FOLDER) == ["k8s default%2Fa eth0"]


def test_a_link_to_the_folder_in_use_is_the_folder_in_use(tmp_path: Path) -> None:
    """/var/run/calico is /run/calico."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    folders = Folders(tmp_path / "record", [tmp_path / "link" / FOLDER])
    files = run_at(tmp_path / "run", folders, "a")
    assert names(tmp_path / "run" / FOLDER) == ["k8s default%2Fa eth0"]
    run_at(tmp_path / "run", folders, "a")
    files.use(tmp_path / "link")
    for _ in range(3):
        files.flush()
    assert names(tmp_path / "run" / FOLDER) == ["k8s default%2Fa eth0"]
    assert len(folders.ours()) == 1


def test_without_a_record_the_usual_place_is_looked_at(tmp_path: Path) -> None:
    run_at(tmp_path / "usual", Folders(), "a")
    run_at(None, Folders(None, [tmp_path / "usual" / FOLDER]))
    assert not (tmp_path / "usual" / FOLDER).exists()


def test_what_others_put_below_stays_and_is_said(tmp_path: Path, folders: Folders) -> None:
    run_at(tmp_path / "one", folders, "a")
    (tmp_path / "one" / FOLDER / "folder-of-others").mkdir()
    assert describe(tmp_path / "one" / FOLDER).endswith(": 1 file")
    empty(folders, tmp_path / "one" / FOLDER)
    assert [path.name for path in (tmp_path / "one" / FOLDER).iterdir()] == ["folder-of-others"]
    assert folders.ours() == []


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with capture_logs() as logs:
        run_at(tmp_path / "one", Folders(tmp_path / "file" / "record"), "a")
    assert names(tmp_path / "one" / FOLDER) == ["k8s default%2Fa eth0"]
    assert [line["event"] for line in logs] == ["folders of endpoint-status files are not recorded"]


def test_a_file_that_cannot_be_removed_is_said_and_holds_back_nothing(
    private_namespaces: None, tmp_path: Path, folders: Folders
) -> None:
    run_at(tmp_path / "one", folders, "a")
    busy = tmp_path / "one" / FOLDER / "k8s default%2Fa eth0"
    run("mount", "--bind", str(busy), str(busy))
    try:
        with capture_logs() as logs:
            run_at(tmp_path / "two", folders, "a")
    finally:
        run("umount", str(busy))
    assert names(tmp_path / "two" / FOLDER) == [busy.name]
    assert [line["log_level"] for line in logs] == ["warning"]
    assert str(busy.parent) in logs[0]["reason"]
    run_at(tmp_path / "two", folders, "a")
    assert not busy.parent.exists(), "the next start tries again"


def test_no_file_comes_before_the_mark_of_its_folder(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / FOLDER / MARK).mkdir(parents=True)
    files = EndpointFiles(tmp_path, clock)
    files.set(endpoint().key, endpoint())
    files.start()
    with capture_logs():
        for _ in range(3):
            files.flush()
            clock.now += RETRY_SECONDS
        assert names(tmp_path / FOLDER) == []
        (tmp_path / FOLDER / MARK).rmdir()
        files.flush()
    assert (tmp_path / FOLDER / MARK).is_file()
    assert len(names(tmp_path / FOLDER)) == 1


@pytest.mark.parametrize("mark", [b"", b"[1]", b"\xff", b"[" * 100_000], ids=["empty", "list", "not text", "nested"])
def test_a_mark_that_says_nothing_is_of_an_earlier_boot(tmp_path: Path, mark: bytes) -> None:
    run_at(tmp_path, Folders(), "a")
    (tmp_path / FOLDER / MARK).write_bytes(mark)
    EndpointFiles(tmp_path).forget_earlier_boot()
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("later", ["one", "two", ""])
def test_files_of_an_earlier_boot_go_at_once(tmp_path: Path, folders: Folders, later: str) -> None:
    """On a disk they outlive the kernel's state; a CNI plugin must not take them for news."""
    folder = tmp_path / "one" / FOLDER
    run_at(tmp_path / "one", folders, "a")
    files = EndpointFiles(tmp_path / later if later else None, folders=folders)
    files.forget_earlier_boot()
    assert len(names(folder)) == 1, "this boot's are true"
    mark = json.loads((folder / MARK).read_text())
    (folder / MARK).write_text(json.dumps({**mark, "boot": "an earlier one"}))
    files.forget_earlier_boot()
    assert not folder.exists()
    run_at(tmp_path / "one", folders, "a")
    assert json.loads((folder / MARK).read_text()) == mark


def test_a_folder_of_an_earlier_boot_that_only_the_stream_names_is_marked_anew(tmp_path: Path) -> None:
    folder = tmp_path / "one" / FOLDER
    run_at(tmp_path / "one", Folders(), "a")
    mark = (folder / MARK).read_text()
    (folder / MARK).write_text("{}")
    files = EndpointFiles(None)
    files.forget_earlier_boot()
    files.use(tmp_path / "one")
    files.start()
    files.flush()
    assert names(folder) == []
    assert (folder / MARK).read_text() == mark


def test_a_symbolic_link_in_the_folder_leads_nobody_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (tmp_path / f".felixpy-{os.getpid()}").symlink_to(elsewhere)
    write_whole(tmp_path / "file", b"content")
    assert elsewhere.read_text() == "precious"
    assert (tmp_path / "file").read_bytes() == b"content" and not (tmp_path / "file").is_symlink()
