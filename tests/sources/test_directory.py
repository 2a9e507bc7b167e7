"""The directory source on real files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from felixpy.demo.patience import stretched
from felixpy.model.resources import Kind, ResourceKey
from felixpy.sources import SyncState, directory
from felixpy.sources.directory import DirectorySource
from felixpy.sources.once import read_once
from tests.sources.stream_lab import Recorder, endpoint, following, pool, wep_key

POOL = ResourceKey(Kind.IP_POOL, "a")


def write(path: Path, *objects: Any) -> None:
    path.write_bytes(b"\n---\n".join(msgspec.json.encode(item) for item in objects))


async def written_again_until_seen(sink: Recorder, path: Path, name: str) -> None:
    """A watch begins some time after the first reading; nothing tells when."""
    while wep_key(name) not in sink.held:
        write(path, endpoint(name, address="10.0.0.2"))
        with contextlib.suppress(AssertionError):
            await sink.until(lambda: wep_key(name) in sink.held, 1)


def test_directory_is_delivered_and_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "SCAN_SECONDS", 3600)

    async def scenario() -> None:
        write(tmp_path / "a.json", pool("a"), endpoint("w"))
        async with following(DirectorySource(tmp_path)) as sink:
            status = await sink.state(SyncState.IN_SYNC)
            assert (status.got, status.want) == (2, 2)
            await written_again_until_seen(sink, tmp_path / "b.yaml", "x")
            (tmp_path / "a.json").unlink()
            await sink.until(lambda: set(sink.held) == {wep_key("x")})
            assert sink.status.state is SyncState.IN_SYNC

    asyncio.run(scenario())


def test_change_without_notifications_is_found_by_scanning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_notifications(path: Path) -> Any:
        raise OSError("no inotify here")
        yield

    monkeypatch.setattr(directory, "_changes", no_notifications)
    monkeypatch.setattr(directory, "SCAN_SECONDS", 0.2)

    async def scenario() -> None:
        write(tmp_path / "a.json", pool("a"))
        async with following(DirectorySource(tmp_path)) as sink:
            await sink.state(SyncState.IN_SYNC)
            write(tmp_path / "b.json", endpoint("w"))
            await sink.until(lambda: wep_key("w") in sink.held)

    asyncio.run(scenario())


def test_unchanged_objects_are_not_delivered_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        write(tmp_path / "a.json", pool("a"), endpoint("w"))
        async with following(DirectorySource(tmp_path)) as sink:
            await sink.state(SyncState.IN_SYNC)
            await asyncio.sleep(0.3)
            write(tmp_path / "a.json", pool("a"), endpoint("w", address="10.0.0.9"))
            await sink.until(lambda: len(sink.updates) > 2)
            assert [update.key for update in sink.updates[2:]] == [wep_key("w")]

    asyncio.run(scenario())


def test_settings_nested_as_deeply_as_can_be_read_are_an_error_of_their_object(tmp_path: Path) -> None:
    """Files are read in a thread, where Python has more room than where they are compared."""
    key = ResourceKey(Kind.FELIX_CONFIGURATION, "default")
    document = {"apiVersion": "projectcalico.org/v3", "kind": "FelixConfiguration", "metadata": {"name": "default"}}

    source, sink = DirectorySource(tmp_path), Recorder()

    async def scenario() -> None:
        for depth in range(950, 990, 4):
            nested = b"[" * depth + b"]" * depth
            text = msgspec.json.encode({**document, "spec": {"x": None}}).replace(b"null", nested)
            (tmp_path / "a.json").write_bytes(text)
            source._take(await asyncio.to_thread(directory.read, tmp_path), sink)
            assert "nested too deeply" in (sink.errors.get(key) or sink.status.reason)
        assert sink.held == {}

    asyncio.run(scenario())


def test_bad_document_is_absent_and_reported_others_are_fine(tmp_path: Path) -> None:
    async def scenario() -> None:
        write(tmp_path / "a.json", pool("a", "10.0.0.1/16"), endpoint("w"))
        async with following(DirectorySource(tmp_path)) as sink:
            await sink.state(SyncState.IN_SYNC)
            assert set(sink.held) == {wep_key("w")}
            assert POOL in sink.errors
            await asyncio.sleep(0.3)
            write(tmp_path / "a.json", pool("a"), endpoint("w"))
            await sink.until(lambda: POOL in sink.held)
            assert not sink.errors

    asyncio.run(scenario())


def test_file_being_written_takes_nothing_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        write(tmp_path / "a.json", pool("a"), endpoint("w"))
        whole = (tmp_path / "a.json").read_bytes()
        async with following(DirectorySource(tmp_path)) as sink:
            await sink.state(SyncState.IN_SYNC)
            before = dict(sink.held)
            await asyncio.sleep(0.3)
            (tmp_path / "a.json").write_bytes(whole[:-40])
            status = await sink.state(SyncState.DEGRADED)
            assert "a.json" in status.reason
            assert sink.held == before
            (tmp_path / "a.json").write_bytes(whole)
            await sink.state(SyncState.IN_SYNC)
            assert sink.held == before and len(sink.updates) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("change", ["chmod", "chown"])
def test_a_file_that_becomes_readable_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Root reads every file: what is forbidden is told by mode and owner here."""
    file, opened = tmp_path / "a.json", Path.open

    def forbidding(path: Path, *arguments: Any, **named: Any) -> Any:
        status = path.stat()
        if path == file and not (status.st_mode & 0o444 and status.st_uid == 0):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    write(file, pool("a"))
    monkeypatch.setattr(Path, "open", forbidding)
    monkeypatch.setattr(directory, "SCAN_SECONDS", 0.1)
    file.chmod(0 if change == "chmod" else 0o644)
    os.chown(file, 0 if change == "chmod" else 65534, 0)

    async def scenario() -> None:
        async with following(DirectorySource(tmp_path)) as sink:
            assert "Permission denied" in (await sink.state(SyncState.DEGRADED)).reason
            file.chmod(0o644)
            os.chown(file, 0, 0)
            await sink.state(SyncState.IN_SYNC)
            assert set(sink.held) == {POOL}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("replicas: 3\n", "document 1"),
        ("- 1\n- 2\n", "document 1"),
        ("just text\n", "document 1"),
        (
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: Pool_B}\nspec: {cidr: 10.49.0.0/21}\n",
            "not a valid name",
        ),
        ("apiVersion: projectcalico.org/v3\nmetadata: {name: x}\n", "kind"),
    ],
)
def test_a_document_that_no_object_can_be_told_of_is_told_and_nothing_else(
    tmp_path: Path, text: str, reason: str
) -> None:
    write(tmp_path / "a.json", pool("a"), endpoint("w"))
    (tmp_path / "values.yaml").write_text(text)

    async def scenario() -> None:
        async with following(DirectorySource(tmp_path)) as sink:
            status = await sink.state(SyncState.IN_SYNC)
            assert set(sink.held) == {POOL, wep_key("w")}
            assert status.reason.startswith(f"left out: {tmp_path}/values.yaml")
            assert reason in status.reason
            (tmp_path / "values.yaml").unlink()
            await sink.until(lambda: not sink.status.reason)
            assert len(sink.updates) == 2

    asyncio.run(scenario())


def test_a_file_of_which_one_document_cannot_be_parsed_keeps_its_objects(tmp_path: Path) -> None:
    write(tmp_path / "a.json", pool("a"), endpoint("w"))

    async def scenario() -> None:
        async with following(DirectorySource(tmp_path)) as sink:
            await sink.state(SyncState.IN_SYNC)
            (tmp_path / "a.json").write_bytes(msgspec.json.encode(pool("a")) + b"\n---\na: [\n")
            await sink.state(SyncState.DEGRADED)
            assert set(sink.held) == {POOL, wep_key("w")}

    asyncio.run(scenario())


def test_a_second_definition_does_not_take_over_while_the_first_file_is_being_written(tmp_path: Path) -> None:
    first, second = pool("a", "10.1.0.0/16"), pool("a", "10.2.0.0/16")
    write(tmp_path / "a.json", first)
    write(tmp_path / "b.json", second)
    whole = (tmp_path / "a.json").read_bytes()

    async def scenario() -> None:
        async with following(DirectorySource(tmp_path)) as sink:
            await sink.state(SyncState.IN_SYNC)
            (tmp_path / "a.json").write_bytes(whole[:-20])
            await sink.state(SyncState.DEGRADED)
            assert len(sink.updates) == 1
            (tmp_path / "a.json").unlink()
            await sink.until(lambda: len(sink.updates) == 2)
            assert "10.2.0.0/16" in str(getattr(sink.held[POOL], "cidr", ""))

    asyncio.run(scenario())


def test_missing_directory_is_degraded_until_it_appears(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "later"
        async with following(DirectorySource(path)) as sink:
            status = await sink.state(SyncState.DEGRADED)
            assert "does not exist" in status.reason
            path.mkdir()
            write(path / "a.json", pool("a"))
            await sink.state(SyncState.IN_SYNC)
            await sink.until(lambda: POOL in sink.held)

    asyncio.run(scenario())


def test_directory_that_vanishes_deletes_nothing_and_is_followed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        path = tmp_path / "resources"
        path.mkdir()
        write(path / "a.json", pool("a"), endpoint("w"))
        async with following(DirectorySource(path)) as sink:
            await sink.state(SyncState.IN_SYNC)
            path.rename(tmp_path / "away")
            status = await sink.state(SyncState.DEGRADED)
            assert "kept as they were" in status.reason and len(sink.held) == 2
            path.mkdir()
            write(path / "a.json", pool("a"))
            await sink.until(lambda: set(sink.held) == {POOL})
            with monkeypatch.context() as patched:
                patched.setattr(directory, "SCAN_SECONDS", 3600)
                await written_again_until_seen(sink, path / "b.json", "x")
            shutil.rmtree(path)
            await sink.state(SyncState.DEGRADED)

    asyncio.run(scenario())


def test_directory_lost_between_listing_and_reading_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lose = tmp_path / "resources", asyncio.Event()
    path.mkdir()
    read = directory.read

    def read_late(folder: Path) -> directory.Reading:
        if lose.is_set():
            shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr(directory, "read", read_late)

    async def scenario() -> None:
        write(path / "a.json", pool("a"), endpoint("w"))
        async with following(DirectorySource(path)) as sink:
            await sink.state(SyncState.IN_SYNC)
            await asyncio.sleep(0.3)
            lose.set()
            write(path / "b.json", endpoint("x"))
            status = await sink.state(SyncState.DEGRADED)
            assert "cannot be read" in status.reason or "is gone" in status.reason
            assert set(sink.held) == {POOL, wep_key("w")}
            assert len(sink.updates) == 2

    asyncio.run(scenario())


def test_path_that_is_no_directory_has_its_own_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "resources"
        path.write_text("a file")
        async with following(DirectorySource(path)) as sink:
            status = await sink.state(SyncState.DEGRADED)
            assert "cannot be read: Not a directory; check FELIX_RESOURCEDIRECTORY" in status.reason

    asyncio.run(scenario())


def test_first_file_by_name_wins_and_the_second_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "b.json", pool("a", "10.2.0.0/16"))
    write(tmp_path / "a.json", pool("a", "10.1.0.0/16"))
    reading = directory.read(tmp_path)
    assert "10.1.0.0/16" in str(getattr(reading.content[POOL].resource, "cidr", ""))
    assert reading.problems == [
        f"{tmp_path}/b.json, document 1: IPPool a is already defined in {tmp_path}/a.json and left out"
    ]


def test_read_once_returns_the_snapshot(tmp_path: Path) -> None:
    write(tmp_path / "a.json", pool("a"), endpoint("w"), {"apiVersion": "v1", "kind": "Pod"})
    seen = asyncio.run(read_once(DirectorySource(tmp_path), stretched(30)))
    assert set(seen.updates) == {POOL, wep_key("w")}
    assert seen.status.state is SyncState.IN_SYNC
    assert seen.unknown == ["kind Pod"]
