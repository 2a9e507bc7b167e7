"""Collections of an API server, followed for ever, with kinds that it may have in one group, in another, or not yet.

    following = Following(api, reader)
    await following.collection(reflector)         # what every API server has
    await following.kind(entry, follower)         # what a custom resource definition brings
    await following.lazily(entry, make_follower)  # what nobody needs before a rule names one of it

What is known stays while a server is away or a kind cannot be found. It must never write to the API server.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from felixpy.kubernetes import kinds
from felixpy.kubernetes.client import Api, ApiError
from felixpy.kubernetes.kinds import Discovery, KindOfObject
from felixpy.kubernetes.reflector import Collection, Follower, Reflector

T = TypeVar("T")


class Following(Generic[T]):
    """Follows kinds, whose objects ``reads`` (entry, group) reads."""

    def __init__(self, api: Api, reads: Callable[[KindOfObject, str], Callable[[msgspec.Raw], T]]) -> None:
        self._api = api
        self._reads = reads
        self._discovery = Discovery(api)
        self._services_named = asyncio.Event()

    def services_named(self) -> None:
        """A rule names a Service: whoever waits in ``lazily`` goes on."""
        self._services_named.set()

    async def collection(self, reflector: Reflector[Any]) -> None:
        """Follow what every API server has: that it is not there is an answer of something else."""
        while True:
            await reflector.run()
            await _pause()

    async def kind(self, entry: KindOfObject, follower: Follower[T]) -> None:
        """Follow a kind in the group that has it; one that is nowhere has no objects, until it is somewhere."""
        reflector: Reflector[T] | None = None
        while True:
            try:
                group = await self._discovery.find(entry)
            except ApiError as error:
                follower.failed(error)
            else:
                if group is not None:
                    collection = Collection(entry.path(group), self._reads(entry, group))
                    if reflector is None:
                        reflector = Reflector(self._api, collection, follower)
                    reflector.collection = collection
                    await reflector.run()
                    self._discovery.doubt(group)
                elif reflector is not None:
                    reflector.forget()
                else:
                    follower.listed()
            await _pause()

    async def lazily(self, entry: KindOfObject, make_follower: Callable[[], Follower[T]]) -> None:
        """Follow a kind from the first rule on that names one of it: not everybody need know every Service."""
        await self._services_named.wait()
        await self.kind(entry, make_follower())


async def _pause() -> None:
    await asyncio.sleep(random.uniform(0.5, 1.0) * kinds.DISCOVERY_SECONDS)
