"""Requests to the API server over one pool of connections, and streams of it.

Every failure is an ``ApiError`` that tells an answer (``status`` as HTTP's) from no answer (``status`` 0). It must
never retry by itself, but once where a renewed token may help: who asks knows what a second try means.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from felixpy.kubernetes.access import Access, AccessError
from felixpy.model.invalid import UNREADABLE
from felixpy.model.net import peer_address
from felixpy.plain_error import PlainError
from felixpy.standing import Standing

REQUEST_SECONDS = 30.0
CONNECT_SECONDS = 10.0

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
JSON = "application/json"

# A connection whose other end is gone without a word is noticed after 15 + 3 × 5 seconds.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_UNANSWERED_MILLISECONDS = 30_000

UNANSWERED = "the API server does not answer"

FORBIDDEN, NOT_FOUND, CONFLICT, GONE, TOO_MANY_REQUESTS = 403, 404, 409, 410, 429


class ApiError(PlainError):
    """The API server refused (``status`` as HTTP's), or did not answer (0). ``reason`` is Kubernetes' one word."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Unanswered(ApiError):
    """The API server cannot be reached: nothing that has to do with what was asked."""

    def __init__(self, message: str) -> None:
        super().__init__(0, message)


class Outage:
    """The time in which the API server does not answer, as all see it who follow something there: one line in the log
    when it begins, and one when everybody has an answer again."""

    def __init__(self) -> None:
        self._without: set[object] = set()
        self._standing = Standing(level="warning")

    def begins(self, who: object, error: Unanswered) -> None:
        """Somebody has no answer."""
        if not self._without:
            self._standing.fails(UNANSWERED, str(error))
        self._without.add(who)

    def ends(self, who: object) -> None:
        """Somebody has an answer, whichever."""
        self._without.discard(who)
        if not self._without:
            self._standing.works(UNANSWERED)


class Status(msgspec.Struct):
    """Kubernetes' answer when something is refused, also inside a watch."""

    code: int = 0
    reason: str = ""
    message: str = ""


class Api:
    """The API server as one client sees it. Close it, or use ``async with``."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._session: aiohttp.ClientSession | None = None
        self.outage = Outage()
        self.on_connected: Callable[[bytes], None] = lambda peer: None
        """Is told the server's address before anything that a stream delivers."""

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = JSON,
        seconds: float = REQUEST_SECONDS,
    ) -> bytes:
        """The answer's body.

        Raises:
            ApiError
        """
        data = None if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        headers = {} if data is None else {"Content-Type": content_type}
        timeout = aiohttp.ClientTimeout(total=seconds, connect=CONNECT_SECONDS)
        try:
            return await self._request(method, path, params, data, headers, timeout)
        except ApiError as error:
            if error.status != 401:
                raise
        return await self._request(method, path, params, data, headers, timeout)

    async def _request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        data: bytes | None,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> bytes:
        async with self._answer(method, path, params, data, headers, timeout) as response:
            return await response.read()

    async def get(self, path: str, **params: str) -> Any:
        """An object, decoded.

        Raises:
            ApiError
        """
        return msgspec.json.decode(await self.request("GET", path, params=params))

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, params: Mapping[str, str], idle_seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Pieces of an answer that may not end. ``idle_seconds`` without a byte are an error.

        Raises:
            ApiError: also from the iterator.
        """
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=idle_seconds)
        async with self._answer("GET", path, params, None, {}, timeout) as response:
            _follow_closely(response)
            if peer := _peer(response):
                self.on_connected(peer)
            yield self._pieces(response)

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        async for piece in response.content.iter_any():
            yield piece

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        data: bytes | None,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            # Cookies are for load balancers of web sites; a watch per kind and requests beside them need room.
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True
            )
        try:
            context = self.access.context()
            async with self._session.request(
                method,
                f"{self.access.server}{path}",
                params=params,
                data=data,
                headers={"Accept": JSON, "Accept-Encoding": "identity", **headers, **self.access.headers()},
                timeout=timeout,
                ssl=True if context is None else context,
                server_hostname=self.access.server_name,
                allow_redirects=False,
            ) as response:
                if response.status >= 300:
                    raise _refusal(response.status, await response.read(), method, path, self.access)
                yield response
        except AccessError as error:
            raise Unanswered(str(error)) from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise Unanswered(f"the API server {self.access.server} cannot be reached: {_why(error)}") from None


def _why(error: Exception) -> str:
    """Why there was no answer, in words for people: aiohttp's own name objects of Python and the server once more."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return str(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if cause.errno and cause.errno > 0 and not isinstance(cause, ssl.SSLError):
            return os.strerror(cause.errno)
        return cause.strerror or str(cause)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _refusal(status: int, body: bytes, method: str, path: str, access: Access) -> ApiError:
    if status == 401:
        access.refused()
    try:
        told = msgspec.json.decode(body, type=Status)
    except UNREADABLE:
        told = Status(message=body[:200].decode(errors="replace"))
    return ApiError(status, f"{method} {path}: {status} {told.message or told.reason}".strip(), told.reason)


def _peer(response: aiohttp.ClientResponse) -> bytes | None:
    connection = response.connection
    transport = connection.transport if connection else None
    name = transport.get_extra_info("peername") if transport else None
    return peer_address(name)


def _follow_closely(response: aiohttp.ClientResponse) -> None:
    """Have the kernel notice that the other end of a silent connection is gone."""
    connection = response.connection
    transport = connection.transport if connection else None
    stream = transport.get_extra_info("socket") if transport else None
    if stream is None or stream.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MILLISECONDS)
