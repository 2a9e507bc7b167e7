"""A store of objects as the API server is one: versions, conflicts, requests that fail before or after their work."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from felixpy.ipam.objects import Conflict, Stored, Unavailable
from felixpy.kubernetes.kinds import KindOfObject


class FakeObjects:
    """One server; every agent of a test uses the same one. ``trouble`` says of each write what goes wrong with it."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Stored] = {}
        self.writes: list[str] = []
        self.reads = 0
        self.conflicts = 0
        self.trouble: Callable[[str], str] = lambda what: ""
        self._versions = itertools.count(1)

    def put(self, kind: KindOfObject, name: str, spec: Mapping[str, Any]) -> None:
        """As somebody else would write it."""
        self.held[kind.plural, name] = self._stored(name, spec, {})

    def specs(self, kind: KindOfObject) -> dict[str, Mapping[str, Any]]:
        return {name: stored.spec for (plural, name), stored in self.held.items() if plural == kind.plural}

    def _stored(self, name: str, spec: Mapping[str, Any], metadata: Mapping[str, Any]) -> Stored:
        version = str(next(self._versions))
        return Stored({"name": name, "uid": f"u{version}", **metadata, "resourceVersion": version}, dict(spec))

    async def get(self, kind: KindOfObject, name: str) -> Stored | None:
        self.reads += 1
        await asyncio.sleep(0)
        return self.held.get((kind.plural, name))

    async def items(self, kind: KindOfObject) -> list[Stored]:
        await asyncio.sleep(0)
        return [stored for (plural, _), stored in self.held.items() if plural == kind.plural]

    async def create(self, kind: KindOfObject, name: str, spec: Mapping[str, Any]) -> Stored:
        def work() -> Stored:
            if (kind.plural, name) in self.held:
                raise self._conflict()
            stored = self.held[kind.plural, name] = self._stored(name, spec, {})
            return stored

        return await self._write(f"create {kind.name} {name}", work)

    async def replace(self, kind: KindOfObject, stored: Stored, spec: Mapping[str, Any]) -> Stored:
        name = stored.metadata["name"]

        def work() -> Stored:
            held = self.held.get((kind.plural, name))
            if held is None or held.metadata["resourceVersion"] != stored.metadata["resourceVersion"]:
                raise self._conflict()
            new = self._stored(name, {**stored.spec, **spec}, {"uid": held.metadata["uid"]})
            self.held[kind.plural, name] = new
            return new

        return await self._write(f"replace {kind.name} {name}", work)

    async def delete(self, kind: KindOfObject, stored: Stored) -> None:
        name = stored.metadata["name"]

        def work() -> Stored:
            held = self.held.get((kind.plural, name))
            if held is not None:
                if held.metadata["resourceVersion"] != stored.metadata["resourceVersion"]:
                    raise self._conflict()
                del self.held[kind.plural, name]
            return stored

        await self._write(f"delete {kind.name} {name}", work)

    async def _write(self, what: str, work: Callable[[], Stored]) -> Stored:
        self.writes.append(what)
        await asyncio.sleep(0)
        trouble = self.trouble(what)
        if trouble == "before":
            raise Unavailable("no answer", unknown=True)
        result = work()
        await asyncio.sleep(0)
        if trouble == "after":
            raise Unavailable("no answer", unknown=True)
        return result

    def _conflict(self) -> Conflict:
        self.conflicts += 1
        return Conflict("it is another one by now")
