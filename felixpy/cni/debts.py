"""Addresses of attachments that are gone: given back at once, or owed until it can be done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from felixpy.cni.attachments import Attachment
from felixpy.cni.journal import Identity, Journal, identity
from felixpy.ipam.assignment import Addresses, NoAddress

log = structlog.get_logger("felixpy")

RELEASE_FIRST_SECONDS, RELEASE_LAST_SECONDS = 1.0, 60.0


class Debts:
    """Gives addresses back. ``stands``: whether a container with this identity is attached, anew perhaps."""

    def __init__(self, addresses: Addresses, journal: Journal, stands: Callable[[Identity], bool]) -> None:
        self._addresses = addresses
        self._journal = journal
        self._stands = stands
        self._owed: dict[str, tuple[Attachment, str]] = {}
        """Addresses that could not be given back yet, by handle, and why."""
        self._repaying: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """What is still owed is found in the journal at the next start."""
        if self._repaying is not None:
            self._repaying.cancel()
            await asyncio.gather(self._repaying, return_exceptions=True)

    async def give_back(self, attachment: Attachment) -> None:
        """Release the addresses, then forget them in the journal: never the other way round, or they could leak."""
        try:
            await self._addresses.release(handle_of(attachment), attachment.addresses)
            await self._journal.forget(identity(attachment))
        except (NoAddress, OSError) as error:
            self._owe(attachment, str(error))

    def _owe(self, attachment: Attachment, reason: str) -> None:
        if not self._owed:
            log.warning("addresses cannot be given back; will be tried again", reason=reason)
        self._owed[handle_of(attachment)] = attachment, reason
        if self._repaying is None or self._repaying.done():
            self._repaying = asyncio.create_task(self._repay())

    async def _repay(self) -> None:
        pause = RELEASE_FIRST_SECONDS
        while self._owed:
            await asyncio.sleep(pause)
            pause = min(pause * 2, RELEASE_LAST_SECONDS)
            for owed, (attachment, _) in list(self._owed.items()):
                try:
                    await self._addresses.release(owed, attachment.addresses)
                    if not self._stands(identity(attachment)):
                        await self._journal.forget(identity(attachment))
                except (NoAddress, OSError) as error:
                    self._owed[owed] = attachment, str(error)
                    break
                self._owed.pop(owed, None)
        log.info("addresses that were owed are given back")


def handle_of(attachment: Attachment) -> str:
    """Who has the addresses, in the words of the address store."""
    return handle(attachment.network, *identity(attachment))


def handle(network: str, container_id: str, container_interface: str) -> str:
    """The same of an attachment that is being made."""
    return f"{network}.{container_id}.{container_interface}"
