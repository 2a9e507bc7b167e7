"""A lock that is no file is told as what it is, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from felixpy.check import facts
from felixpy.dataplane.iptables.lock import xtables_lock
from felixpy.dataplane.packet_filter import FilterError


@pytest.mark.parametrize(
    ("kind", "said", "fault"),
    [
        ("directory", "it is a directory", "is a directory"),
        ("dangling", "a symbolic link that leads nowhere", "is a symbolic link that leads nowhere"),
    ],
)
def test_what_is_no_file_is_said(
    kind: str, said: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "xtables.lock"
    if kind == "directory":
        lock.mkdir()
    else:
        lock.symlink_to(tmp_path / "gone" / "lock")
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    monkeypatch.setattr(facts, "XTABLES_LOCK", lock)
    with pytest.raises(FilterError) as caught, xtables_lock(0):
        pass
    assert said in str(caught.value) and "remove it" in str(caught.value)
    assert "make its folder writable" not in str(caught.value)
    assert not facts._lock_writable()
    assert facts._lock_fault() == fault
