"""Leader election by a Lease of the API server: of several processes one works, and another goes on when it is gone.

As Kubernetes' own components do it: the holder renews its lease every few seconds; who waits judges by his own clock
how long the lease has not been renewed, so clocks need not agree. Invariant: ``hold`` ends before anybody else can
hold the lease. It must never take a lease that is renewed.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Any

import structlog

from felixpy.kubernetes.client import CONFLICT, NOT_FOUND, Api, ApiError
from felixpy.standing import Standing

log = structlog.get_logger(__name__)

LEASE_SECONDS = 15
RENEW_SECONDS = 10.0
"""The holder that could not renew for so long stops: sooner than the lease ends for those who wait."""

RETRY_SECONDS = 2.0


class LeaseLost(Exception):
    """The lease could not be renewed, or is somebody else's."""


class Lease:
    """One lease, as ``identity`` sees it."""

    def __init__(self, api: Api, namespace: str, name: str, identity: str) -> None:
        self._api = api
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._path = f"{self._collection}/{name}"
        self._metadata = {"name": name, "namespace": namespace}
        self._identity = identity
        self._standing = Standing(level="warning")
        self._seen: tuple[Any, Any] = (None, None)
        self._seen_at = 0.0

    async def acquire(self) -> None:
        """Return when the lease is ours."""
        while True:
            try:
                if await self._try():
                    self._standing.works("the lease cannot be read")
                    return
            except ApiError as error:
                if error.status != CONFLICT:
                    self._standing.fails("the lease cannot be read", str(error))
            await asyncio.sleep(RETRY_SECONDS * random.uniform(0.8, 1.2))

    async def hold(self) -> None:
        """Renew for ever.

        Raises:
            LeaseLost
        """
        renewed = time.monotonic()
        reason = ""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            if time.monotonic() - renewed > RENEW_SECONDS:
                raise LeaseLost(f"the lease was not renewed for {RENEW_SECONDS:.0f} s: {reason}")
            try:
                async with asyncio.timeout(RENEW_SECONDS - (time.monotonic() - renewed)):
                    if not await self._try():
                        raise LeaseLost("the lease is another's")
                renewed = time.monotonic()
            except TimeoutError:
                reason = "no answer in time"
            except ApiError as error:
                reason = str(error)

    async def release(self) -> None:
        """Let another one take over at once."""
        try:
            lease = await self._api.get(self._path)
            if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._api.request("PUT", self._path, lease)
        except ApiError as error:
            log.info("the lease was not released; it ends by itself", reason=str(error))

    async def _try(self) -> bool:
        """Take or renew the lease; whether it is ours then."""
        try:
            lease = await self._api.get(self._path)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            new = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": self._metadata}
            await self._api.request("POST", self._collection, {**new, "spec": self._spec({})})
            return True
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") != self._identity and not self._has_ended(spec):
            return False
        await self._api.request("PUT", self._path, {**lease, "spec": self._spec(spec)})
        return True

    def _has_ended(self, spec: dict[str, Any]) -> bool:
        if not spec.get("holderIdentity"):
            return True
        state = spec.get("holderIdentity"), spec.get("renewTime")
        if state != self._seen:
            self._seen, self._seen_at = state, time.monotonic()
        return time.monotonic() - self._seen_at > (spec.get("leaseDurationSeconds") or LEASE_SECONDS)

    def _spec(self, before: dict[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_new = before.get("holderIdentity") != self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": now if is_new else before.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": (before.get("leaseTransitions") or 0) + (1 if is_new and before else 0),
        }
