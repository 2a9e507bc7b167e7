"""Whether a systemd-networkd works on this host that takes nexthop objects of others away. Looks at files only.

networkd removes what it did not make whenever it configures an interface anew. For routes and rules that can be turned
off (``systemd/networkd.conf``), for nexthop objects since version 256 only; with an object the kernel drops its routes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

STATE = Path("/run/systemd/netif/state")
"""Is there while networkd runs; the folder may be there without it."""
LIBRARIES = (Path("/usr/lib/systemd"), Path("/usr/lib"), Path("/lib/systemd"))
SPARES_NEXTHOPS = 256
_LIBRARY = re.compile(r"libsystemd-shared-(\d+)")


def takes_nexthops(state: Path = STATE, libraries: tuple[Path, ...] = LIBRARIES) -> bool:
    """Whether networkd runs, and is too old to be told to leave them; of an unknown version it is taken for new."""
    if not state.exists():
        return False
    version = _version(libraries)
    return version is not None and version < SPARES_NEXTHOPS


@functools.cache
def _version(libraries: tuple[Path, ...]) -> int | None:
    return max((int(found[1]) for name in _names(libraries) if (found := _LIBRARY.match(name))), default=None)


def _names(libraries: tuple[Path, ...]) -> Iterator[str]:
    for folder in libraries:
        for pattern in ("libsystemd-shared-*", "*/systemd/libsystemd-shared-*"):
            yield from (path.name for path in folder.glob(pattern))
