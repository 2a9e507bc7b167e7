"""Documents made ready to be published or deleted: each with its topic, or the whole batch refused.

Pure. Invariant: no two entries of a batch have the same key. A batch is made before any connection, so that bad input
changes nothing anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from felixpy.config.resolve import ProblemKind, configuration_problems
from felixpy.model.documents import BadDocument, Document
from felixpy.model.invalid import NOT_KNOWN
from felixpy.model.net import Net
from felixpy.model.resources import Absent, FelixConfiguration, Kind, ResourceKey
from felixpy.mqtt import topics
from felixpy.plain_error import PlainError


class PublishError(PlainError):
    """Nothing, or not everything, was published; the text is one sentence for people."""


class BadBatch(PublishError):
    """Documents that cannot be used; ``problems`` has one sentence each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        count = "1 document" if len(problems) == 1 else f"{len(problems)} documents"
        super().__init__(f"nothing was sent: {count} cannot be used: {'; '.join(problems)}")
        self.problems = problems


class Entry(Struct, frozen=True):
    """One resource: its key on the broker, its topic, and the filter that finds it wherever it is now.

    ``topic`` is empty, and so is ``payload``, of what is to be deleted and of which no more than the key is known.
    """

    key: ResourceKey
    topic: str
    filter: str
    payload: bytes


class Batch(Struct, frozen=True):
    """What to publish or delete. ``problems``: documents that were left out on request, one sentence each;
    ``unknown``: kinds, fields and settings that were passed over on request; ``notes``: what no agent acts upon;
    ``ignored`` counts documents of kinds that are not ours.
    """

    entries: tuple[Entry, ...]
    problems: tuple[str, ...] = ()
    ignored: int = 0
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def prepare(
    documents: Iterable[Document | BadDocument], *, skip_bad: bool = False, ignore_unknown: bool = False
) -> Batch:
    """Check documents as a whole: what an agent would refuse or pass over is found here.

    Raises:
        BadBatch: a document is bad or names a key twice, and ``skip_bad`` is false; or it has a kind, a field or a
            setting that no agent takes, and neither ``skip_bad`` nor ``ignore_unknown`` is true.
    """
    entries: dict[ResourceKey, Entry] = {}
    places: dict[ResourceKey, str] = {}
    problems: list[str] = []
    unknown: list[str] = []
    notes: list[str] = []
    ignored = 0
    for document in documents:
        if isinstance(document, BadDocument):
            problems.append(str(document))
            continue
        if document.resource is not None and document.resource.key.kind is Kind.NODE_STATE:
            problems.append(f"{document.place}: {document.resource.key}: its node alone says it; apply a Node instead")
            continue
        strange = _unknown(document)
        bad = _bad_settings(document, strange, notes)
        ignored += document.resource is None
        if strange and ignore_unknown:
            unknown += strange
        elif strange:
            bad += strange
        if not bad and document.resource is not None:
            entry = _entry(document)
            if entry.key in entries:
                bad.append(f"{document.place}: {entry.key} is already defined in {places[entry.key]}")
            else:
                entries[entry.key], places[entry.key] = entry, document.place
        problems += bad
    if problems and not skip_bad:
        raise BadBatch(tuple(problems))
    return Batch(tuple(entries.values()), tuple(problems), ignored, tuple(unknown), tuple(notes))


def _unknown(document: Document) -> list[str]:
    """Kind and fields of a document that no agent takes: mostly misspelt, and then not what was meant."""
    subject = f"{document.resource.key}: " if document.resource is not None else ""
    in_rules = (what for what in getattr(document.resource, "problems", ()) if NOT_KNOWN in what)
    unknown = (*(f"{what} {NOT_KNOWN}" for what in document.unknown), *in_rules)
    return [f"{document.place}: {subject}{what}" for what in unknown]


def _bad_settings(document: Document, unknown: list[str], notes: list[str]) -> list[str]:
    """Settings of a FelixConfiguration that every agent refuses; those that none knows go to ``unknown``."""
    if not isinstance(document.resource, FelixConfiguration):
        return []
    bad: list[str] = []
    kinds = {ProblemKind.BAD_VALUE: bad, ProblemKind.UNKNOWN: unknown}
    for problem in configuration_problems(document.resource):
        kinds.get(problem.kind, notes).append(f"{document.place}: {problem}")
    return bad


def prepare_deletion(documents: Iterable[Document | BadDocument], *, ignore_unknown: bool = False) -> Batch:
    """What documents name, for being deleted: kind and name are enough, whatever else is wrong with them.

    Raises:
        BadBatch: a document does not tell what it means, or is of a kind that nobody takes.
    """
    entries: dict[ResourceKey, Entry] = {}
    problems: list[str] = []
    ignored = 0
    for document in documents:
        if isinstance(document, BadDocument):
            if document.key is None:
                problems.append(str(document))
            else:
                entries.setdefault(document.key, _named(document.key))
        elif document.resource is None and ignore_unknown:
            ignored += 1
        elif document.resource is None:
            problems += _unknown(document)
        else:
            entry = _entry(document)
            entries.setdefault(entry.key, entry)
    if problems:
        raise BadBatch(tuple(problems))
    return Batch(tuple(entries.values()), (), ignored)


def _named(key: ResourceKey) -> Entry:
    """Of an object of which no more than the key is known: node and CIDR, parts of some topics, are not."""
    if key.kind in topics.OF_A_NODE:
        wide = topics.endpoint_filter(key)
    elif key.kind is Kind.BLOCK_AFFINITY:
        wide = topics.kind_filter(topics.SEGMENT[key.kind])
    else:
        wide = topics.shared_topic(key)
    return Entry(key, "", wide, b"")


def _entry(document: Document) -> Entry:
    resource = document.resource
    assert resource is not None
    topic = _absent_topic(document) if isinstance(resource, Absent) else topics.topic_of(resource)
    key = topics.key_of(topic)
    assert key is not None, topic
    wide = topics.endpoint_filter(key) if key.kind in topics.OF_A_NODE else topic
    return Entry(key, topic, wide, msgspec.json.encode(document.object))


def _absent_topic(document: Document) -> str:
    """A deleted block or affinity is still published: its node and CIDR are in the object."""
    assert isinstance(document.resource, Absent)
    key = document.resource.key
    spec = document.object.get("spec") if isinstance(document.object, Mapping) else None
    if key.kind in (Kind.IPAM_BLOCK, Kind.BLOCK_AFFINITY) and isinstance(spec, Mapping):
        cidr = Net.parse(str(spec["cidr"]))
        is_block = key.kind is Kind.IPAM_BLOCK
        return topics.block_topic(cidr) if is_block else topics.affinity_topic(str(spec["node"]), cidr)
    return topics.shared_topic(key)
