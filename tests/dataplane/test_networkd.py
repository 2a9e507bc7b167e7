"""Which systemd-networkd takes nexthop objects away."""

from __future__ import annotations

from pathlib import Path

import pytest

from felixpy.dataplane.networkd import takes_nexthops


@pytest.mark.parametrize(
    ("library", "takes"),
    [
        ("libsystemd-shared-252.so", True),
        ("libsystemd-shared-255.7-1.fc40.so", True),
        ("libsystemd-shared-257.so", False),
    ],
)
@pytest.mark.parametrize("folder", [".", "x86_64-linux-gnu/systemd"])
def test_it_is_told_by_its_version(tmp_path: Path, library: str, takes: bool, folder: str) -> None:
    (tmp_path / "lib" / folder).mkdir(parents=True)
    (tmp_path / "lib" / folder / library).touch()
    (tmp_path / "state").touch()
    assert takes_nexthops(tmp_path / "state", (tmp_path / "lib",)) == takes
    assert not takes_nexthops(tmp_path / "none", (tmp_path / "lib",)), "none runs"


def test_of_an_unknown_version_it_is_taken_for_new(tmp_path: Path) -> None:
    assert not takes_nexthops(tmp_path, (tmp_path / "lib",))
