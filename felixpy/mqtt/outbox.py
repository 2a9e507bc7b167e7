"""Status messages on their way to the broker: the latest payload per topic, written when the connection allows.

Invariant: ``put`` returns at once and never loses the latest payload; after a new connection everything that is still
true is written again, because the broker may have lost it. It must never hold the stream up. What MQTT cannot carry is
dropped, and the log says so once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from felixpy.model.net import quote
from felixpy.standing import Standing

Publish = Callable[[str, bytes], Awaitable[None]]

IN_FLIGHT = 20
"""Writes without acknowledgement: Mosquitto's default for a client that sends. One by one, thousands take long."""


REST_SECONDS = 0.02
"""Between news and their writing: a burst of updates comes first, and of many news of a topic one is written."""


class Outbox:
    """Latest payload per topic; empty means: delete the retained message."""

    def __init__(self) -> None:
        self._latest: dict[str, bytes] = {}
        self._waiting: dict[str, None] = {}
        self._writing: set[str] = set()
        self._wake = asyncio.Event()
        self._standing = Standing(level="warning")

    def put(self, topic: str, payload: bytes, *, first: bool = False) -> None:
        """Take a payload; with ``first`` it is written before all that waits."""
        self._latest[topic] = payload
        if first and topic not in self._waiting:
            self._waiting = {topic: None, **self._waiting}
        self._waiting[topic] = None
        self._wake.set()

    def holds(self, topic: str) -> bool:
        """Whether this process has something to say at a topic."""
        return bool(self._latest.get(topic))

    def repeat(self, topic: str) -> None:
        """Write what was said at a topic once more: somebody has written over it."""
        if self.holds(topic):
            self._waiting[topic] = None
            self._wake.set()

    def resend(self) -> None:
        """A new connection: write everything again, in the order of first use."""
        self._waiting = dict.fromkeys((*self._latest, *self._waiting))
        if self._waiting:
            self._wake.set()

    async def write_all(self, publish: Publish) -> None:
        """Write what is waiting now, several topics at a time. A topic whose write fails is still waiting."""
        tasks = [asyncio.create_task(self._write(publish)) for _ in range(min(IN_FLIGHT, len(self._waiting)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, publish: Publish) -> None:
        """One topic after another; never one that is being written, so that its latest payload comes last."""
        while topic := next((topic for topic in self._waiting if topic not in self._writing), None):
            self._writing.add(topic)
            payload = self._latest[topic]
            try:
                await publish(topic, payload)
            except ValueError as error:  # paho's: too long
                self._standing.fails("a status cannot be published and is dropped", str(error), topic=quote(topic))
                if self._latest[topic] is payload:
                    self._latest[topic] = payload = b""
            finally:
                self._writing.remove(topic)
            del self._waiting[topic]
            if self._latest[topic] is not payload:
                self._waiting[topic] = None  # behind the others: a topic that always changes must not starve them
            elif not payload:
                del self._latest[topic]

    async def run(self, publish: Publish) -> None:
        """Write for ever."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(REST_SECONDS)
            self._wake.clear()
            await self.write_all(publish)
