"""A collection of the API server, kept equal to what the server holds: list, then watch, for ever.

Whatever the connection does, the follower sees each object's latest content once: an object that did not change is
not told again, and nothing is removed before a list is complete that does not hold it. A server that is away, or whose
history is too short (410), changes nothing. An event that is older than what is known of its object is no news.

The list is streamed (``sendInitialEvents``) where the server can, else read in pages, so that neither side ever holds
all of it as text. Objects are kept as the content that ``decode`` makes of them and no more.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec
import structlog
from msgspec import Struct

from felixpy.kubernetes.client import (
    FORBIDDEN,
    GONE,
    NOT_FOUND,
    TOO_MANY_REQUESTS,
    Api,
    ApiError,
    Status,
    Unanswered,
)
from felixpy.slices import in_slices
from felixpy.standing import Standing

log = structlog.get_logger(__name__)

T = TypeVar("T")
Told = TypeVar("Told", contravariant=True)

ObjectKey = tuple[str, str]
"""Namespace (empty for cluster-wide kinds) and name."""

PAGE = 500
WATCH_SECONDS = (300, 600)
"""How long a watch is asked for; drawn anew each time, so that a cluster's agents do not return at once."""

SILENCE_SECONDS = 60.0
"""So much longer than the watch was to last is silence: the server is gone."""

SHORT_SECONDS = 5.0
"""A watch that ends sooner and told nothing was none."""

BACKOFF_FIRST_SECONDS, BACKOFF_LAST_SECONDS = 0.2, 30.0
FORBIDDEN_SECONDS = 30.0
"""How often a collection that the server does not show us is asked for again."""

_INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_REFUSED_STREAMING = frozenset({400, 415, 422})


class _Metadata(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    annotations: dict[str, str] | None = None


class _Object(msgspec.Struct):
    metadata: _Metadata


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _ListMetadata(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    following: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    metadata: _ListMetadata
    items: list[msgspec.Raw] | None = None


_EVENT = msgspec.json.Decoder(_Event)
_LIST = msgspec.json.Decoder(_List)
_OBJECT = msgspec.json.Decoder(_Object)
_STATUS = msgspec.json.Decoder(Status)


class Held(NamedTuple, Generic[T]):
    """An object as it is known: its version, and what was made of it."""

    version: str
    content: T


class Follower(Protocol[Told]):
    """Is told of every change; must return at once."""

    def changed(self, key: ObjectKey, content: Told | None) -> None:
        """An object's content, None if it is gone."""

    def listed(self) -> None:
        """The collection was read as a whole, and everything in it was told."""

    def failed(self, error: ApiError) -> None:
        """The collection cannot be read now; it will be tried again."""

    def recovered(self) -> None:
        """It can be read again, and nothing was missed."""


class Collection(Struct, Generic[T], frozen=True):
    """What to follow: ``path`` as ``/api/v1/pods``; ``decode`` makes a comparable value of an object's JSON.

    ``decode`` raises nothing: what it cannot read becomes a content that says so.
    """

    path: str
    decode: Callable[[msgspec.Raw], T]
    field_selector: str = ""


class _Expired(Exception):
    """The server's history does not reach back to what we know."""


class _Interrupted(Exception):
    """The server said in the stream that it cannot go on."""


class Reflector(Generic[T]):
    """One collection and its follower. ``run`` for ever; ``held`` is what is known."""

    def __init__(self, api: Api, collection: Collection[T], follower: Follower[T]) -> None:
        self.held: dict[ObjectKey, Held[T]] = {}
        self._api = api
        self.collection = collection
        self._follower = follower
        self._version = ""
        self._deleted: dict[ObjectKey, int] = {}
        self._streams_lists = True
        self._attempt = 0
        self._is_failing = False
        self._standing = Standing(level="warning")

    async def run(self) -> None:
        """Follow until the server says that there is no such collection; raises nothing that a server can do.

        What is known stays: a 404 may also be a proxy's. ``forget`` when it is sure.
        """
        while True:
            try:
                await self._list()
                while True:
                    await self._watch()
            except _Expired:
                await self._pause()  # at once, but for a server that says so again and again
            except _Interrupted as error:
                self._fails(ApiError(0, f"{self.collection.path}: the watch ended: {error}"))
                await self._pause()
            except ApiError as error:
                if not isinstance(error, Unanswered):
                    self._api.outage.ends(self)
                if error.status == NOT_FOUND:
                    return
                if error.status != TOO_MANY_REQUESTS:  # it asks for patience: it reads a kind for the first time
                    self._fails(error)
                if error.status == FORBIDDEN:  # until somebody gives us the right
                    await asyncio.sleep(random.uniform(0.5, 1.0) * FORBIDDEN_SECONDS)
                else:
                    await self._pause()

    def forget(self) -> None:
        """There is no such collection, and so nothing in it."""
        self._sweep(set())

    def tell(self, key: ObjectKey, raw: msgspec.Raw) -> None:
        """Take an object that somebody asked the server for, ahead of the watch."""
        version = _OBJECT.decode(raw).metadata.resource_version
        if self._is_news(key, version):
            self._put(key, version, self.collection.decode(raw))

    # --- list --------------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        if self._streams_lists:
            try:
                await self._watch(initial=True)
                return
            except ApiError as error:
                if error.status not in _REFUSED_STREAMING:
                    raise
                self._streams_lists = False
        await self._list_pages()

    async def _list_pages(self) -> None:
        seen: set[ObjectKey] = set()
        following = version = ""
        while True:
            params = self._params(limit=str(PAGE), **({"continue": following} if following else {}))
            try:
                body = await self._api.request("GET", self.collection.path, params=params)
                page = _LIST.decode(body)
            except ApiError as error:
                if error.status == GONE:
                    raise _Expired from None
                raise
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ApiError(0, f"{self.collection.path}: not a list: {error}") from None
            del body
            async for some in in_slices(page.items or (), at_once=4):
                for raw in some:
                    self._listed_object(raw, seen)
            version, following = page.metadata.resource_version, page.metadata.following
            if not following:
                break
        self._complete(seen, version)

    def _listed_object(self, raw: msgspec.Raw, seen: set[ObjectKey]) -> None:
        metadata = _metadata(raw)
        if metadata is None:
            return
        key = metadata.namespace, metadata.name
        seen.add(key)
        held = self.held.get(key)
        # A list is the truth also where its versions are lower, as after a restore of etcd.
        if held is None or held.version != metadata.resource_version:
            self._put(key, metadata.resource_version, self.collection.decode(raw))

    def _complete(self, seen: set[ObjectKey], version: str) -> None:
        self._version = version
        self._deleted.clear()
        self._sweep(seen)
        self._works()

    def _sweep(self, seen: set[ObjectKey]) -> None:
        for key in [key for key in self.held if key not in seen]:
            self._remove(key)
        self._follower.listed()

    # --- watch -------------------------------------------------------------------------------------------------

    async def _watch(self, *, initial: bool = False) -> None:
        """One watch to its end; with ``initial``, it begins with the whole collection."""
        seconds = random.randint(*WATCH_SECONDS)
        params = self._params(watch="1", allowWatchBookmarks="true", timeoutSeconds=str(seconds))
        if initial:
            params |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        else:
            params["resourceVersion"] = self._version
        seen: set[ObjectKey] | None = set() if initial else None
        events, began = 0, time.monotonic()
        try:
            async with self._api.stream(self.collection.path, params, seconds + SILENCE_SECONDS) as pieces:
                if not initial:
                    self._works()
                async for some in _lines(pieces):
                    events += len(some)
                    async for few in in_slices(some, at_once=4):
                        for line in few:
                            seen = self._event(line, seen)
        except ApiError as error:
            if error.status == GONE:
                raise _Expired from None
            raise
        if seen is not None:
            raise ApiError(0, f"{self.collection.path}: the list ended before it was complete")
        if not events and time.monotonic() - began < SHORT_SECONDS:
            await self._pause()  # a server, or something before it, that hangs up on everybody

    def _event(self, line: bytes, seen: set[ObjectKey] | None) -> set[ObjectKey] | None:
        """Take one event. ``seen`` are the objects of the list that is under way; None when it is complete."""
        try:
            event = _EVENT.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _Interrupted(f"not an event: {error}") from None
        if event.type == "ERROR":
            self._error(event.object)
        metadata = _metadata(event.object)
        if metadata is None:
            return seen
        version, key = metadata.resource_version, (metadata.namespace, metadata.name)
        if event.type == "BOOKMARK":
            if seen is not None:
                if (metadata.annotations or {}).get(_INITIAL_EVENTS_END) == "true":
                    self._complete(seen, version)
                    return None
                return seen
            self._deleted.clear()
        elif seen is not None and event.type == "ADDED":
            self._listed_object(event.object, seen)
            return seen
        elif event.type == "DELETED":
            if seen is not None:
                seen.discard(key)
            if self._is_news(key, version):
                self._remove(key)
                if version.isdecimal():
                    self._deleted[key] = int(version)
        elif event.type in ("ADDED", "MODIFIED"):
            if seen is not None:
                seen.add(key)
            if self._is_news(key, version):
                self._put(key, version, self.collection.decode(event.object))
        if seen is None and version:
            self._version = _later(self._version, version)
        self._attempt = 0
        return seen

    def _error(self, raw: msgspec.Raw) -> None:
        try:
            status = _STATUS.decode(raw)
        except msgspec.DecodeError:
            status = Status(message="an error without a reason")
        if status.code == GONE or status.reason == "Expired":
            raise _Expired
        raise _Interrupted(f"{status.code} {status.message or status.reason}")

    # --- what is known -----------------------------------------------------------------------------------------

    def _is_news(self, key: ObjectKey, version: str) -> bool:
        """Whether an event is younger than what is known. Versions that are no numbers cannot be compared."""
        held = self.held.get(key)
        if not version.isdecimal():
            return held is None or held.version != version
        if held is not None and held.version.isdecimal():
            return int(version) > int(held.version)
        return int(version) > self._deleted.get(key, -1)

    def _put(self, key: ObjectKey, version: str, content: T) -> None:
        held = self.held.get(key)
        self._deleted.pop(key, None)
        self.held[key] = Held(version, content)
        if held is None or held.content != content:
            self._follower.changed(key, content)

    def _remove(self, key: ObjectKey) -> None:
        if self.held.pop(key, None) is not None:
            self._follower.changed(key, None)

    # --- failures ----------------------------------------------------------------------------------------------

    def _params(self, **params: str) -> dict[str, str]:
        if self.collection.field_selector:
            params["fieldSelector"] = self.collection.field_selector
        return params

    def _fails(self, error: ApiError) -> None:
        if isinstance(error, Unanswered):
            self._api.outage.begins(self, error)  # one line for all collections
        else:
            self._standing.fails(f"cannot follow {self.collection.path}", str(error))
        self._is_failing = True
        self._follower.failed(error)

    def _works(self) -> None:
        self._api.outage.ends(self)
        self._standing.works(f"cannot follow {self.collection.path}")
        if self._is_failing:
            self._is_failing = False
            self._follower.recovered()

    async def _pause(self) -> None:
        """Exponential with full jitter, so that a thousand agents do not return to a server at once."""
        longest = min(BACKOFF_LAST_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(self._attempt, 10))
        self._attempt += 1
        await asyncio.sleep(random.uniform(0, longest))


def _metadata(raw: msgspec.Raw) -> _Metadata | None:
    """An object's own; None, and a line in the log, for what is none."""
    try:
        return _OBJECT.decode(raw).metadata
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("not an object", reason=str(error))
        return None


def _later(one: str, other: str) -> str:
    """The later of two versions; the second where they cannot be compared."""
    if one.isdecimal() and other.isdecimal() and int(one) > int(other):
        return one
    return other


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Whole lines, some at once, of pieces that end anywhere. What follows the last line end was cut off: no event."""
    parts: list[bytes] = []
    async for piece in pieces:
        head, end, rest = piece.rpartition(b"\n")
        if not end:
            parts.append(piece)  # a large object comes in many pieces: joined once
            continue
        whole = b"".join((*parts, head))
        parts = [rest] if rest else []
        yield [line for line in whole.split(b"\n") if line]
