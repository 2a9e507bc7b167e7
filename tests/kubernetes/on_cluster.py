"""kubectl for a running test cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

JSON = dict[str, Any]
IMAGE = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"


class Kubectl:
    """``run`` is the folder of the cluster."""

    def __init__(self, run: Path) -> None:
        self._environ = f'export RUN="{run}"; . "{Path(__file__).parent}/cluster/env.sh"; kubectl "$@"'

    def command(self, *arguments: str) -> tuple[str, ...]:
        return ("bash", "-c", self._environ, "kubectl", *arguments)

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """What kubectl says; ends the program if it fails."""
        done = subprocess.run(self.command(*arguments), input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, objects: Sequence[JSON]) -> None:
        self.kubectl("apply", "-f", "-", given=_list(objects))

    def delete(self, objects: Sequence[JSON]) -> None:
        self.kubectl("delete", "-f", "-", given=_list(objects))


def _list(objects: Sequence[JSON]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
