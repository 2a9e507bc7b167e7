"""What this node says of itself at the broker (``nodestate/<node>``): one topic, one writer.

Invariant: nothing is written before what stands there was read; after that it holds what was said last, also after a
new connection, or after somebody deleted it. Whoever else writes there is told, and written over once in a while: two
writers must not answer each other at the speed of the broker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from felixpy.mqtt.connection import Connection, Refused
from felixpy.standing import Standing

OVERWRITE_SECONDS = 60.0
REMEMBERED = 100
"""So many words of our own are known again when the broker sends them back."""

FOREIGN = "somebody else writes what this node says of itself"
REFUSED = "what this node says of itself cannot be published"


class OwnState:
    """The topic's content as it is to be. ``clock``: seconds on any steady clock."""

    def __init__(self, topic: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.topic = topic
        self._clock = clock
        self._payload: bytes | None = None
        self._written: set[bytes] = set()
        self._overwritten_at = float("-inf")
        self._due = asyncio.Event()
        self._standing = Standing()

    @property
    def is_said(self) -> bool:
        """Whether this process has said anything: what the broker holds is no news to it any more."""
        return self._payload is not None

    def put(self, payload: bytes) -> None:
        """Say this from now on; returns at once."""
        if payload != self._payload:
            self._payload = payload
            self._due.set()

    def heard(self, payload: bytes) -> None:
        """Judge what stands there now."""
        if not self.is_said or payload in self._written:
            return
        if payload:
            self._standing.fails(
                FOREIGN, f"{self.topic} has one writer, the node itself: two agents may have one node name (NODENAME)"
            )
            if self._clock() - self._overwritten_at < OVERWRITE_SECONDS:
                return
            self._overwritten_at = self._clock()
        self._due.set()

    async def run(self, connection: Connection) -> None:
        """Keep the topic as it is to be, for ever. Begin when what stood there was read."""
        if self.is_said:
            self._due.set()
        while True:
            await self._due.wait()
            self._due.clear()
            payload = self._payload
            if payload is None:
                continue
            self._written = {payload} if len(self._written) >= REMEMBERED else {*self._written, payload}
            try:
                await connection.publish(self.topic, payload, retain=True)
            except Refused as refused:
                self._standing.fails(
                    REFUSED,
                    f"the broker refuses {refused.topic} ({refused.reason}): allow this user to write it "
                    "(config/mosquitto.acl), or publish its Node with 'felixpy node --yaml | felixpy apply -f -'",
                )
            else:
                self._standing.works(REFUSED)
