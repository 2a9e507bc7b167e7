"""The hub as a process: follows the API, and writes to the broker while it holds the lease.

Several may run: all follow the API, so that the next one can go on at once. Composition only.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import uuid4

import structlog
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from felixpy.config import Settings
from felixpy.hub.content import ClusterContent
from felixpy.hub.peers import PeerTable
from felixpy.hub.writing import Writing
from felixpy.kubernetes.client import Api
from felixpy.kubernetes.lease import Lease, LeaseLost
from felixpy.observe.server import serve_latest

log = structlog.get_logger(__name__)

LEASE = "felixpy-hub"


class Hub:
    """One hub of a cluster. ``namespace``: where its lease is."""

    def __init__(self, settings: Settings, api: Api, namespace: str, *, take_over: bool = False) -> None:
        self._settings = settings
        self._api = api
        self.cluster = ClusterContent(settings, api, PeerTable(uuid4().hex))
        self.writing = Writing(settings, self.cluster, take_over=take_over)
        self._lease = Lease(api, namespace, LEASE, f"{socket.gethostname()}_{uuid4().hex[:8]}")
        self.leads = False

    async def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        parts: list[Coroutine[Any, Any, Any]] = [stop.wait(), self.cluster.run(), self._lead(), self._serve()]
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._api.close()
        for task in done:
            task.result()  # raises what a part failed with

    async def _lead(self) -> None:
        await self.cluster.complete.wait()
        while True:
            log.info("waiting for the lease", lease=LEASE)
            await self._lease.acquire()
            log.info("this hub leads")
            self.leads = True
            try:
                await self._write_while_held()
            except LeaseLost as error:
                log.warning("this hub leads no more", reason=str(error))
            finally:
                self.leads = False

    async def _write_while_held(self) -> None:
        held, writing = asyncio.create_task(self._lease.hold()), asyncio.create_task(self.writing.run())
        try:
            await asyncio.wait((held, writing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (held, writing):
                task.cancel()
            ended = await asyncio.gather(held, writing, return_exceptions=True)
            if not isinstance(ended[0], LeaseLost):
                await self._lease.release()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    # --- what is told ------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        await serve_latest(
            self._settings, asyncio.Queue(), lambda: (True, ""), self.is_ready, self.metrics, self.describe
        )

    def is_ready(self) -> tuple[bool, str]:
        """Whether this hub does its work, or could at once."""
        if not self.cluster.complete.is_set():
            return False, f"reading the Kubernetes API: {', '.join(self.cluster.missing())}"
        if self.leads and not self.writing.in_sync:
            return False, "the broker does not hold what the cluster is yet"
        return True, ""

    def describe(self) -> dict[str, Any]:
        return {
            "leads": self.leads,
            "objects": len(self.cluster.content),
            "nodes": len(self.cluster.nodes),
            "endpoints": len(self.cluster.peers),
            "identities": self.cluster.peers.identities,
            "refused": dict(sorted(self.cluster.refused.items())[:100]),
        }

    async def metrics(self) -> bytes:
        """As Prometheus reads them."""
        registry = CollectorRegistry()
        for name, (meaning, value) in METRICS.items():
            Gauge(name, meaning, registry=registry).set(value(self))
        return generate_latest(registry)


METRICS: dict[str, tuple[str, Callable[[Hub], float]]] = {
    "felixpy_hub_leader": ("1 while this hub writes", lambda hub: hub.leads),
    "felixpy_hub_in_sync": ("1 while the broker holds what the cluster is", lambda hub: hub.writing.in_sync),
    "felixpy_hub_objects": ("Topics with an object", lambda hub: len(hub.cluster.content)),
    "felixpy_hub_nodes": ("Nodes", lambda hub: len(hub.cluster.nodes)),
    "felixpy_hub_endpoints": ("Endpoints that others can talk to", lambda hub: len(hub.cluster.peers)),
    "felixpy_hub_identities": ("Different labels, profiles and ports", lambda hub: hub.cluster.peers.identities),
    "felixpy_hub_refused_objects": ("Objects that cannot be used", lambda hub: len(hub.cluster.refused)),
    "felixpy_hub_delta": ("Number of the latest delta", lambda hub: hub.cluster.peers.number),
    "felixpy_hub_written_topics": ("Topics written since the start", lambda hub: hub.writing.counts.topics),
}
"""Gauges: name, meaning, value."""
