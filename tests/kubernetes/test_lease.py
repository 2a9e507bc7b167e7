"""A lease has one holder, who stops before another one begins."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from felixpy.kubernetes import lease
from felixpy.kubernetes.access import Access, Identity
from felixpy.kubernetes.client import CONFLICT, NOT_FOUND, Api, ApiError
from felixpy.kubernetes.lease import Lease, LeaseLost

PATH = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"


class Server(Api):
    """Leases with compare-and-swap; ``refuses`` is what it says instead of an answer."""

    def __init__(self) -> None:
        super().__init__(Access(Identity("http://nowhere")))
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 0
        self.refuses: ApiError | None = None
        self.writes = 0

    async def request(self, method: str, path: str, body: Any = None, **more: Any) -> bytes:
        await asyncio.sleep(0)
        if self.refuses is not None:
            raise self.refuses
        name = path if method != "POST" else f"{path}/{body['metadata']['name']}"
        there = self.objects.get(name)
        if method == "GET":
            if there is None:
                raise ApiError(NOT_FOUND, "not found")
            return msgspec.json.encode(there)
        if method == "POST" and there is not None:
            raise ApiError(CONFLICT, "exists")
        version = there["metadata"]["resourceVersion"] if there else ""
        if method == "PUT" and body["metadata"].get("resourceVersion") != version:
            raise ApiError(CONFLICT, "changed")
        self.version += 1
        self.writes += 1
        self.objects[name] = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return msgspec.json.encode(self.objects[name])

    def lease(self, who: str) -> Lease:
        return Lease(self, "kube-system", "hub", who)

    @property
    def holder(self) -> str:
        return str(self.objects[f"{PATH}/hub"]["spec"]["holderIdentity"])


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RETRY_SECONDS", 0.02), ("RENEW_SECONDS", 0.2)):
        monkeypatch.setattr(lease, name, value)


def test_one_holds_and_another_goes_on_when_it_lets_go() -> None:
    async def scenario() -> None:
        server = Server()
        one, two = server.lease("one"), server.lease("two")
        await one.acquire()
        holding, waiting = asyncio.create_task(one.hold()), asyncio.create_task(two.acquire())
        writes = server.writes
        while server.writes < writes + 20:  # noqa: ASYNC110  progress of another task
            await asyncio.sleep(0.01)
        assert (server.holder, waiting.done()) == ("one", False)
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        await one.release()
        await waiting
        assert server.holder == "two"
        assert server.objects[f"{PATH}/hub"]["spec"]["leaseTransitions"] == 1

    asyncio.run(scenario())


def test_a_holder_that_died_is_followed_when_its_lease_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1)

    async def scenario() -> None:
        server = Server()
        await server.lease("one").acquire()
        two = server.lease("two")
        assert not await two._try()
        await two.acquire()
        assert server.holder == "two"

    asyncio.run(scenario())


def test_a_holder_stops_when_it_cannot_renew_or_another_holds() -> None:
    async def scenario() -> None:
        server = Server()
        one = server.lease("one")
        await one.acquire()
        server.refuses = ApiError(0, "the API server cannot be reached")
        with pytest.raises(LeaseLost, match="cannot be reached"):
            await one.hold()
        server.refuses = None
        server.objects[f"{PATH}/hub"]["spec"]["holderIdentity"] = "two"
        with pytest.raises(LeaseLost, match="another"):
            await one.hold()

    asyncio.run(scenario())


def test_two_that_begin_at_once() -> None:
    async def scenario() -> None:
        server = Server()
        tried = await asyncio.gather(*(server.lease(str(n))._try() for n in range(5)), return_exceptions=True)
        assert [each for each in tried if each is True] == [True]

    asyncio.run(scenario())
