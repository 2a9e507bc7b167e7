"""What attaching containers needs of the agent: that it programs endpoints, and says of the node how it is."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from felixpy.cni.wishes import PodWishes
from felixpy.model.resources import ResourceKey, Update, WorkloadEndpoint


class NotProgrammed(Exception):
    """The kernel does not carry an endpoint; the text says why. ``later``: it may yet."""

    def __init__(self, reason: str, *, later: bool) -> None:
        super().__init__(reason)
        self.later = later


class NodeState(Struct, frozen=True):
    """Whether workloads can be attached, and whether those that are may suffer; empty texts: all is well."""

    cannot: str = ""
    limited: str = ""


class Programming(Protocol):
    """The agent, as far as attaching needs it."""

    def update(self, update: Update) -> None: ...

    async def ready(self) -> None:
        """Until the node is known as a whole for the first time."""

    def until_up(
        self, key: ResourceKey, is_it: Callable[[WorkloadEndpoint], bool]
    ) -> contextlib.AbstractContextManager[Awaitable[None]]:
        """What is awaited inside the context ends when the kernel carries an endpoint ``is_it`` says yes to.

        Raises:
            NotProgrammed: it cannot.
        """

    def state(self) -> NodeState: ...

    def is_up(self, key: ResourceKey) -> tuple[bool, str]:
        """Whether the kernel carries an endpoint, and why not."""


class Pods(Protocol):
    """Pods as the API has them, where the node follows it: then endpoints come from there, not from here."""

    async def wishes(self, namespace: str, pod: str, uid: str) -> PodWishes: ...


class Node(Struct):
    """What of the node the names and defaults come from."""

    name: str
    interface_prefix: Callable[[], str]
    mtu: Callable[[], int] = lambda: 0
