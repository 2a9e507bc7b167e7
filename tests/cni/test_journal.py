"""The journal of attachments: what was written is there after any crash, and what cannot be written is told."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.cni import journal as module
from felixpy.cni.attachments import Attachment
from felixpy.cni.journal import Journal, JournalError, encode_add, identity, parse
from felixpy.model.net import Net


def attachment(number: int, interface: str = "eth0") -> Attachment:
    return Attachment(
        namespace="default",
        pod=f"pod{number}",
        uid=f"u{number}",
        container_id=f"c{number}",
        interface=f"cali{number}",
        addresses=(Net.host(bytes((10, 48, 0, number))), Net.host(bytes(15) + bytes((number,)))),
        mac=bytes((2, 0, 0, 0, 0, number)),
        netns=f"/run/netns/{number}",
        container_interface=interface,
        network="net",
        created="2026-01-01T00:00:00Z",
    )


def opened(path: Path) -> Journal:
    journal = Journal(path)
    journal.load()
    return journal


def test_what_is_added_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "attachments"

    async def scenario() -> None:
        journal = opened(path)
        await asyncio.gather(*(journal.add(attachment(number)) for number in range(1, 9)))
        await journal.forget(("c3", "eth0"))
        await journal.add(attachment(4))
        journal.close()

    asyncio.run(scenario())
    found = Journal(path).load().attachments
    assert list(found.values()) == [attachment(number) for number in (1, 2, 5, 6, 7, 8, 4)], "the latest is last"
    assert path.stat().st_mode & 0o777 == 0o600


def test_adds_at_once_share_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = []
    real = os.fdatasync
    monkeypatch.setattr(module.os, "fdatasync", lambda file: (syncs.append(file), real(file)))

    async def scenario() -> None:
        journal = opened(tmp_path / "attachments")
        await asyncio.gather(*(journal.add(attachment(number)) for number in range(1, 51)))
        journal.close()

    asyncio.run(scenario())
    assert len(syncs) <= 3


@given(st.integers(0, 5000))
def test_a_crash_at_any_byte_loses_only_what_was_not_whole(cut: int) -> None:
    lines = [b'{"felixpy-cni":1}\n', *(encode_add(attachment(number)) for number in range(1, 6))]
    data = b"".join(lines)
    kept = data[: cut % (len(data) + 1)]
    content = parse(kept)
    whole = max(0, kept.count(b"\n") - 1)
    assert [one.container_id for one in content.attachments.values()] == [
        f"c{number}" for number in range(1, whole + 1)
    ]
    assert content.damaged == []


def test_damaged_lines_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "attachments"
    path.write_bytes(
        b'{"felixpy-cni":1}\n' + encode_add(attachment(1)) + b"\x00\x01nonsense\n" + encode_add(attachment(2))
    )
    content = Journal(path).load()
    assert list(content.attachments) == [("c1", "eth0"), ("c2", "eth0")]
    assert content.damaged == [3]
    assert b"nonsense" in path.with_name("attachments.damaged").read_bytes()
    assert b"nonsense" not in path.read_bytes()


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "attachments"
    path.write_bytes(b'{"felixpy-cni":2}\n')
    with pytest.raises(JournalError, match="has version 2"):
        Journal(path).load()
    assert path.read_bytes() == b'{"felixpy-cni":2}\n'


def test_a_full_disk_fails_the_add_and_leaves_the_file_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the line is on the disk; the next line takes its place."""
    path = tmp_path / "attachments"
    real = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        real(file, data[: len(data) // 2], offset)
        raise OSError(28, "No space left on device")

    async def scenario() -> None:
        journal = opened(path)
        await journal.add(attachment(1))
        with monkeypatch.context() as patch:
            patch.setattr(module.os, "pwrite", full)
            with pytest.raises(OSError, match="No space left"):
                await journal.add(attachment(2))
        await journal.forget(("c1", "eth0"))
        await journal.add(attachment(3))
        journal.close()

    asyncio.run(scenario())
    content = parse(path.read_bytes())
    assert (list(content.attachments), content.damaged) == ([("c3", "eth0")], [])


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "attachments"
    monkeypatch.setattr(module, "DEAD_LINES", 10)

    async def scenario() -> None:
        journal = opened(path)
        await journal.add(attachment(1))
        for _ in range(200):
            await journal.add(attachment(2))
            await journal.forget(identity(attachment(2)))
        journal.close()

    asyncio.run(scenario())
    assert path.read_bytes().count(b"\n") < 30
    assert list(Journal(path).load().attachments) == [("c1", "eth0")]
    assert [file.name for file in tmp_path.iterdir()] == ["attachments"]


def test_a_folder_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="see that CNIStateDirectory can be written"):
        Journal(tmp_path / "file" / "attachments").load()
