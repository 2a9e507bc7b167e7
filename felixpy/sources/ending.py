"""Ending tasks for certain. It must never wait for ever for a task that can be cancelled at all."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any


async def end(tasks: Collection[asyncio.Task[Any]], patience_seconds: float) -> None:
    """Cancel tasks and wait until all have ended; cancel again whenever the patience is over.

    Once is not enough: ``asyncio.wait_for`` of Python 3.11, which aiomqtt uses, loses a cancellation that meets its
    result. The patience is what a task may need to end in good order.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=patience_seconds)
