"""Files and texts of manifests: YAML or JSON, several documents, lists, ``Installation``.

Every object becomes a ``Document`` or a ``BadDocument`` of its own, so that one mistake never hides a neighbour.
Reading never raises for what a file holds, and must never crash the process: libyaml recurses on the C stack, so the
depth of a text is known before it is composed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml
from msgspec import Struct

from felixpy.model.expand import Part, expand_parts
from felixpy.model.invalid import UNREADABLE, Ignored, InvalidResource, ignore
from felixpy.model.net import quote
from felixpy.model.parse import MAX_PAYLOAD_BYTES, object_key, parse_resource
from felixpy.model.repeated import repeated_key
from felixpy.model.resources import Absent, Resource, ResourceKey

MAX_FILE_BYTES = 64 << 20
MAX_DEPTH = 200
MAX_VALUES = 2_000_000  # values of one document once its aliases are written out
SUFFIXES = frozenset({".yaml", ".yml", ".json"})


class Document(Struct, frozen=True):
    """One object. ``resource`` is None for a kind that is not ours; ``index`` counts documents from 1.

    ``field`` is where the object stood if its document held several, e.g. ``items[0]``; ``unknown`` is what of it was
    passed over, in the words of ``Ignored``.
    """

    origin: str
    index: int
    object: Mapping[str, Any]
    resource: Resource | Absent | None
    field: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        return ", ".join(filter(None, (self.origin, f"document {self.index}", self.field)))


class BadDocument(Struct, frozen=True):
    """One object, document (``index``) or file (``index`` 0) that cannot be used.

    ``unread``: what it holds is not known, because it cannot be read or parsed.
    """

    origin: str
    index: int
    key: ResourceKey | None
    field: str
    reason: str
    unread: bool = False

    def __str__(self) -> str:
        place = f"{self.origin}, document {self.index}" if self.index else self.origin
        subject = " ".join(part for part in (str(self.key) if self.key else "", self.field) if part)
        return f"{place}: {subject}: {self.reason}" if subject else f"{place}: {self.reason}"


AnyDocument = Document | BadDocument


def load(paths: Iterable[Path]) -> list[AnyDocument]:
    """Every document of files and directories."""
    return list(chain.from_iterable(load_directory(path) if path.is_dir() else load_file(path) for path in paths))


def load_directory(path: Path, ignored: Ignored = ignore) -> Iterator[AnyDocument]:
    """Every manifest of a directory by name, hidden files and subdirectories left out."""
    try:
        files = sorted(
            entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")
        )
    except OSError as error:
        yield BadDocument(str(path), 0, None, "", f"the directory cannot be read: {error.strerror}", unread=True)
        return
    for file in files:
        try:
            is_regular, is_folder = file.is_file() or not file.exists(), file.is_dir()
        except OSError as error:  # a directory that may be listed but not entered
            yield BadDocument(str(file), 0, None, "", f"the file cannot be read: {error.strerror}", unread=True)
            continue
        if is_regular:
            yield from load_file(file, ignored)
        elif not is_folder:  # opening a pipe would wait for its writer
            yield BadDocument(str(file), 0, None, "", "is not a regular file", unread=True)


def load_file(path: Path, ignored: Ignored = ignore) -> Iterator[AnyDocument]:
    """Every object of one file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        yield BadDocument(str(path), 0, None, "", f"the file cannot be read: {error.strerror}", unread=True)
        return
    yield from load_text(raw, str(path), ignored)


def load_text(raw: bytes, origin: str, ignored: Ignored = ignore) -> Iterator[AnyDocument]:
    """Every object of a text; ``origin`` names it in messages."""
    if len(raw) > MAX_FILE_BYTES:
        yield BadDocument(
            origin, 0, None, "", f"is larger than {MAX_FILE_BYTES} bytes; split it into several files", unread=True
        )
        return
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield BadDocument(origin, 0, None, "", f"byte {error.start} is not UTF-8", unread=True)
        return
    for index, chunk in enumerate(_split(text), 1):
        try:
            obj = _decode(chunk)
        except InvalidResource as error:
            yield BadDocument(origin, index, None, error.field, error.reason, unread=True)
            continue
        try:
            for part in expand_parts(obj) if obj is not None else ():
                yield _judge(origin, index, part, ignored)
        except InvalidResource as error:
            yield BadDocument(origin, index, None, error.field, error.reason)


def _judge(origin: str, index: int, part: Part, ignored: Ignored) -> AnyDocument:
    if part.error:
        return BadDocument(origin, index, None, part.error.field, part.error.reason)
    unknown: list[str] = []

    def told(what: str) -> None:
        unknown.append(what)
        ignored(what)

    try:
        resource = parse_resource(part.object, told)
        size = len(msgspec.json.encode(part.object))
        if size > MAX_PAYLOAD_BYTES:
            raise InvalidResource(f"{size} bytes are more than the {MAX_PAYLOAD_BYTES} that an object may have")
    except InvalidResource as error:
        key = error.key or object_key(part.object)
        return BadDocument(origin, index, key, part.field(error.field), error.reason)
    return Document(origin, index, part.object, resource, part.place, tuple(unknown))


class _Chunk(NamedTuple):
    """The text of one document and the number of lines before it."""

    text: str
    line: int


_BOUNDARY = re.compile(r"^(?:---(?=[ \t\r\n]|\Z)|\.\.\.[ \t\r]*$)", re.MULTILINE)
_NOTHING = re.compile(r"(?:[ \t\r]*(?:#.*)?(?:\n|\Z)|%.*(?:\n|\Z))*")


def _split(text: str) -> Iterator[_Chunk]:
    """Documents of a YAML stream, cut before parsing so that a broken one leaves the next one whole."""
    start, line = 0, 0
    for boundary in [*_BOUNDARY.finditer(text), None]:
        chunk = text[start : boundary.start() if boundary else len(text)]
        if not _NOTHING.fullmatch(chunk):
            yield _Chunk(chunk, line)
        if boundary:
            line += text.count("\n", start, boundary.end())
            start = boundary.end()


def _decode(chunk: _Chunk) -> object:
    if chunk.text.lstrip()[:1] in ("{", "["):
        try:
            found = msgspec.json.decode(chunk.text)
            if repeated_key(chunk.text.encode()) is None:
                return found
        except RecursionError:
            raise InvalidResource("is nested too deeply") from None
        except UNREADABLE:
            pass  # a flow mapping of YAML, or broken JSON, of which YAML can tell the line; so it can of a key twice
    return _decode_yaml(chunk)


_NOT_IN_JSON = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")  # 2026-01-01 and =: left as text
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_NO_COLON = re.compile(r"[^:]*\Z")
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _NumberWithoutColon:
    """YAML 1.1 reads a MAC of digits and an IPv6 address as numbers to base 60; kubectl and calicoctl read text."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def match(self, text: str) -> re.Match[str] | None:
        return self._pattern.match(text) if _NO_COLON.match(text) else None


class _Loader(_BaseLoader):  # type: ignore[misc]
    """Safe YAML of what JSON can say, in which no mapping has a key twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, _NumberWithoutColon(pattern) if tag in _NUMBERS else pattern)
            for tag, pattern in resolvers
            if tag not in _NOT_IN_JSON
        ]
        for first, resolvers in _BaseLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """As the base does; ``<<`` may be written over, which the base takes apart in here."""
        seen: dict[str, Any] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, key) is not key:
                raise _RepeatedKeyError(key, seen[key.value])
        return super().construct_mapping(node, deep)


class _RepeatedKeyError(yaml.YAMLError):
    """A key stands twice in one mapping."""

    def __init__(self, key: Any, first: Any) -> None:
        self.key, self.line, self.first_line = key.value, key.start_mark.line, first.start_mark.line

    def explain(self, line: int) -> str:
        """``line``: lines before the document."""
        return (
            f"line {line + self.line + 1}: the key {quote(self.key)} is there already, in line"
            f" {line + self.first_line + 1}; is a line --- missing between two objects?"
        )


def _decode_yaml(chunk: _Chunk) -> object:
    try:
        _check_depth(chunk.text)
        obj = yaml.load(chunk.text, _Loader)
    except InvalidResource:
        raise
    except _RepeatedKeyError as error:
        raise InvalidResource(error.explain(chunk.line)) from None
    except yaml.MarkedYAMLError as error:
        raise InvalidResource(_explain(error, chunk.line)) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        words = str(error).splitlines() or [type(error).__name__]
        raise InvalidResource(f"is not YAML: {words[0][:120]}") from None
    _Plain().check(obj, 0)
    return obj


def _explain(error: yaml.MarkedYAMLError, line: int) -> str:
    mark = error.problem_mark or error.context_mark
    problem = (error.problem or error.context or "it cannot be parsed")[:120]
    if mark is None:
        return f"is not YAML: {problem}"
    return f"is not YAML: line {line + mark.line + 1}, column {mark.column + 1}: {problem}"


_USUAL_RUN = 40
_INDICATORS = re.compile(rf"[ \t\-?:\ufeff]{{{_USUAL_RUN},}}")


def _check_depth(text: str) -> None:
    """Refuse what nests so deeply that composing it could exhaust the C stack.

    Flow collections open with a bracket. Block collections open within a run of indentation and indicators, at most two
    per column. Only a text that has many of either is worth the pass over its events.
    """
    brackets = text.count("[") + text.count("{")
    longest_run = max(map(len, _INDICATORS.findall(text)), default=_USUAL_RUN)
    if brackets + 2 * longest_run < MAX_DEPTH:
        return
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidResource("is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Plain:
    """Proves that a value loaded from YAML is what JSON could have said, and of sane size with aliases written out."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}  # by id(); 0 while the value is being visited

    def check(self, value: object, depth: int) -> int:
        if value is None or isinstance(value, str | bool | float):
            return 1
        if isinstance(value, int):
            if not -(1 << 63) <= value < 1 << 64:
                raise InvalidResource("holds a number of more than 64 bits")
            return 1
        if not isinstance(value, dict | list):
            raise InvalidResource(f"holds a YAML {type(value).__name__}; only what JSON has is allowed")
        if depth > 2 * MAX_DEPTH or self.sizes.get(id(value)) == 0:
            raise InvalidResource("is nested too deeply")
        return self.sizes.get(id(value)) or self.check_collection(value, depth)

    def check_collection(self, value: dict[Any, Any] | list[Any], depth: int) -> int:
        self.sizes[id(value)] = 0
        size = 1
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise InvalidResource(f"holds the key {str(key)[:40]!a}, which is not text; write it in quotes")
        for item in value.values() if isinstance(value, dict) else value:
            size += self.check(item, depth + 1)
        if size > MAX_VALUES:
            raise InvalidResource(f"holds more than {MAX_VALUES} values")
        self.sizes[id(value)] = size
        return size
