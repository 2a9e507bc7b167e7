"""ip-masq-agent's file, followed: what it says is in force a moment after it is written.

    file ──► destinations that keep their source address ──► members of one set

A file that cannot be used changes nothing, and is told once. One that is not there means that program's defaults. What
notifications miss, as of a folder that is mounted later, is found at the next ``resyncInterval``. It must never stop
the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import structlog
from watchfiles import awatch

from felixpy.config.masq_agent import RESYNC_SECONDS, MasqAgentConfig, MasqFileError, parse
from felixpy.model.net import Net
from felixpy.observe.samples import RecentFailures
from felixpy.standing import Standing

log = structlog.get_logger("felixpy")

UNUSABLE = "ip-masq-agent's file cannot be used; what it said before stays"
SETTLE_MILLISECONDS = 100
MAX_BYTES = 1 << 20


class MasqAgentFile:
    """Follows one file; ``leave_alone`` takes the destinations."""

    def __init__(
        self,
        path: Path,
        leave_alone: Callable[[tuple[Net, ...]], None],
        recent: RecentFailures,
        *,
        ipv6: bool,
        all_reserved: bool,
    ) -> None:
        self._path = path
        self._leave_alone = leave_alone
        self._ipv6 = ipv6
        self._all_reserved = all_reserved
        self._config: MasqAgentConfig | None = None
        self._standing = Standing(recent.note, recent.over)

    async def run(self) -> None:
        """For ever."""
        while True:
            self.read()
            await self._wait()

    def read(self) -> None:
        """Take what the file says, if it can be used and is news."""
        try:
            config = parse(self._text(), ipv6=self._ipv6, all_reserved=self._all_reserved)
        except (MasqFileError, OSError, UnicodeDecodeError) as error:
            self._standing.fails(UNUSABLE, f"{self._path}: {error}")
            return
        self._standing.works(UNUSABLE)
        if config == self._config:
            return
        self._config = config
        alone = config.left_alone()
        log.info("ip-masq-agent", file=str(self._path), not_masqueraded=", ".join(map(str, alone)))
        self._leave_alone(alone)

    def _text(self) -> str | None:
        """None if it is not there.

        Raises:
            OSError, UnicodeDecodeError, MasqFileError: it cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(content) > MAX_BYTES:
            raise MasqFileError(f"it has more than {MAX_BYTES} bytes")
        return content.decode()

    async def _wait(self) -> None:
        """Until something changes in its folder, for ``resyncInterval`` at most.

        The folder, not the file: editors put another one in its place, and a ConfigMap is a link to a link that moves.
        """
        interval = max(self._config.resync_interval if self._config else RESYNC_SECONDS, 1.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval):
                try:
                    await anext(
                        awatch(
                            self._path.parent, recursive=False, step=SETTLE_MILLISECONDS, debounce=SETTLE_MILLISECONDS
                        )
                    )
                except (OSError, RuntimeError, StopAsyncIteration):  # no such folder, or no notifications of it
                    await asyncio.Event().wait()
