"""The agent as the CNI server sees it.

    server ──update──► agent ──outcome──► server

Invariant: ``up`` is what the outcome says of an endpoint after it was written, never a guess; of an endpoint that is
another one than the caller means nothing is concluded. It must never hold the loop up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from felixpy.agent.agent import Agent
from felixpy.cni.programming import NodeState, NotProgrammed
from felixpy.model.resources import ResourceKey, Update, WorkloadEndpoint
from felixpy.sources import SyncState


class Attaching:
    """``Programming`` of the CNI server."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def update(self, update: Update) -> None:
        self._agent.update(update)

    async def ready(self) -> None:
        await self._agent.known.wait()

    @contextmanager
    def until_up(self, key: ResourceKey, is_it: Callable[[WorkloadEndpoint], bool]) -> Iterator[Awaitable[None]]:
        agent = self._agent
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def told(state: str, reason: str) -> None:
            if done.done():
                return
            endpoint = agent.store.endpoints.get(key)
            if state == "error" and (endpoint is None or is_it(endpoint)):
                done.set_exception(NotProgrammed(reason, later=False))
            elif state == "up" and endpoint is not None and is_it(endpoint):
                done.set_result(None)

        with agent.outcome.following(key, told):
            try:
                yield done
            finally:
                if not done.done():
                    done.cancel()
                elif not done.cancelled():
                    done.exception()  # whether anybody waited or not

    def is_up(self, key: ResourceKey) -> tuple[bool, str]:
        state, reason = self._agent.outcome.state_of(key)
        return state == "up", reason or state or "it is not known"

    def state(self) -> NodeState:
        agent = self._agent
        if not agent.known.is_set():
            return NodeState(cannot=f"the stream is not known yet: {agent.stream.reason or agent.stream.state.value}")
        ready, why = agent.is_ready()
        if not ready:
            return NodeState(cannot=why)
        limited = [f"{family} is not programmed: {reason}" for family, reason in agent.failures.items()]
        if agent.stream.state is SyncState.DEGRADED and not limited:
            limited = [f"the stream is degraded: {agent.stream.reason}"]
        return NodeState(limited="; ".join(limited))
