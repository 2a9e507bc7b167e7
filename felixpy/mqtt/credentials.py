"""The files that a connection was made with (CA, client certificate, key, password), and when others take their place.

What counts is what the files hold: a secret's update replaces symbolic links, which are followed. Invariant: a
connection that works is given up only for files with which the broker has let a trial in. It must never log what a file
holds, nor come to the broker at the same moment as a thousand other agents.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from pathlib import Path

from felixpy.config import Settings
from felixpy.mqtt.connection import StreamError
from felixpy.standing import Standing

LOOK_SECONDS = 5.0
SPREAD_SECONDS = (1.0, 10.0)
"""Between the discovery and the trial: agents come one by one, and a key has time to follow its certificate."""

AGAIN_SECONDS = 60.0
"""After so long files that could not be used are tried again as they are: the broker may have changed."""

UNUSABLE = "new credentials cannot be used"

Digests = dict[Path, bytes]


class CredentialsChanged(StreamError):
    """Not a failure: the connection is to be made anew, with files that the broker accepts."""


class Credentials:
    """Files of one source. ``trial`` makes a connection of its own with them and ends it, or raises ``StreamError``."""

    def __init__(self, settings: Settings, trial: Callable[[], Awaitable[None]]) -> None:
        self._files = _files(settings)
        self._trial = trial
        self._trying: asyncio.Task[str] | None = None
        self._used: Digests = {}
        self._asked = asyncio.Event()
        self._standing = Standing(level="warning")

    def look(self) -> None:
        """Look at the files now, and try them even if they could not be used before; returns at once."""
        self._asked.set()

    async def note(self) -> None:
        """A connection is about to be made; what changes from here on is noticed."""
        self._used = await self._read()

    async def until_changed(self) -> None:
        """Return never, and wait for ever without files.

        Raises:
            CredentialsChanged: there are new files, and they can be used.
        """
        self._standing.works(UNUSABLE)  # the connection was made with what is there
        failed, again_at = self._used, float("inf")
        while self._files:
            asked = await self._next_look()
            found = await self._read()
            if found == self._used:
                self._standing.works(UNUSABLE)
            elif asked or found != failed or time.monotonic() >= again_at:
                await asyncio.sleep(random.uniform(*SPREAD_SECONDS))
                failed, again_at = await self._read(), time.monotonic() + AGAIN_SECONDS
                if failed != self._used:
                    await self._try(failed)
        await asyncio.Event().wait()

    async def _next_look(self) -> bool:
        """Wait; true if somebody asked for it."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _try(self, found: Digests) -> None:
        changed = ", ".join(str(path) for path in self._files if found[path] != self._used[path])
        # To cancel it half-way would leave a connection behind: it is made in a thread.
        self._trying = asyncio.create_task(self._why_not())
        if reason := await asyncio.shield(self._trying):
            self._standing.fails(UNUSABLE, f"{reason}; the connection with the old ones stays", changed=changed)
        else:
            raise CredentialsChanged(f"new content of {changed}")

    async def _why_not(self) -> str:
        try:
            await self._trial()
        except StreamError as error:
            return str(error)
        return ""

    async def _read(self) -> Digests:
        return await asyncio.to_thread(lambda: {path: _digest(path) for path in self._files})


def _files(settings: Settings) -> tuple[Path, ...]:
    of_tls = (settings.mqtt_ca_file, settings.mqtt_cert_file, settings.mqtt_key_file) if settings.mqtt_tls else ()
    return tuple(path for path in (*of_tls, settings.mqtt_password_file) if path is not None)


def _digest(path: Path) -> bytes:
    """Of what the file holds; empty if it cannot be read, which its use will explain."""
    try:
        return blake2b(path.read_bytes()).digest()
    except OSError:
        return b""
