"""An adapter for ``--external``, as an example: programs the routes of workloads by ``ip``, and nothing else.

Reads the protocol of ``bench/README.md`` on standard input; removes what it wrote when its input ends. What it costs is
what a process per change costs, so it is no agent to compare with.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

PROTOCOL = "98"


class Routes:
    """Routes by endpoint, as ``ip -batch`` lines without their verb."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], list[str]] = {}

    def lines(self, message: dict[str, Any]) -> list[str]:
        """What a message changes."""
        if message["op"] == "delete" and message["kind"] == "WorkloadEndpoint":
            return self._change((message["namespace"], message["name"]), [])
        if message["op"] == "put" and message["object"]["kind"] == "WorkloadEndpoint":
            metadata, spec = message["object"]["metadata"], message["object"]["spec"]
            device = f"dev {spec['interfaceName']} proto {PROTOCOL}"
            wanted = [f"{network} {device}" for network in spec["ipNetworks"]]
            return self._change((metadata["namespace"], metadata["name"]), wanted)
        return []

    def _change(self, key: tuple[str, str], wanted: list[str]) -> list[str]:
        held = self._held.pop(key, [])
        if wanted:
            self._held[key] = wanted
        changes = [f"route replace {route}" for route in wanted if route not in held]
        return changes + [f"route del {route}" for route in held if route not in wanted]

    def all_gone(self) -> list[str]:
        return [f"route del {route}" for routes in self._held.values() for route in routes]


def batch(lines: Iterable[str]) -> None:
    text = "\n".join(lines)
    if text:
        subprocess.run(("ip", "-force", "-batch", "-"), input=text + "\n", text=True, check=False)


def main() -> None:
    routes = Routes()
    snapshot: list[str] | None = []
    for line in sys.stdin:
        message = json.loads(line)
        changes = routes.lines(message)
        if snapshot is None:
            batch(changes)
        else:
            snapshot += changes
            if message["op"] == "complete":
                batch(snapshot)
                snapshot = None
    batch(routes.all_gone())


if __name__ == "__main__":
    main()
