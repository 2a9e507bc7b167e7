"""Which selectors match which endpoints, kept true while labels, profiles, endpoints and selectors change. Pure.

Endpoints with the same labels and profiles are one ``Held`` identity; those that look alike to every selector in use
are one ``Projection``, because labels that no selector names do not count. Selectors are evaluated for projections,
never for endpoints, and only those that share a term that each match needs (``Selector.needs``).

Invariant: ``held.projection.watched`` is exactly what matches. A change costs what it changes: nothing here walks all
endpoints; only a selector without needs walks all projections when it is new.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from felixpy.model.resources import ResourceKey
from felixpy.model.selectors import Selector, Term
from felixpy.store.index import Index, Some, added, without
from felixpy.store.peers import Identity

K = TypeVar("K")
V = TypeVar("V")


class Watched:
    """A selector in use, ``refs`` times, and the projections that it matches."""

    __slots__ = ("need", "projections", "refs", "selector")

    def __init__(self, selector: Selector, need: frozenset[Term] | None) -> None:
        """``need``: the one of the selector's needs under which it is found, None if it has none."""
        self.selector = selector
        self.need = need
        self.refs = 0
        self.projections: set[Projection] = set()

    def held(self) -> Iterator[Held]:
        """The identities that it matches."""
        for projection in self.projections:
            yield from projection.held

    def __repr__(self) -> str:
        return f"Watched({self.selector})"


class Projection:
    """What selectors see of some identities, and which of them match it."""

    __slots__ = ("content", "held", "watched")

    def __init__(self, content: tuple[tuple[str, str], ...]) -> None:
        self.content = content
        self.held: Some[Held] = ()
        self.watched: Some[Watched] = ()

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.content)


class Held:
    """An identity that something has: ``things``."""

    __slots__ = ("identity", "projection", "things")

    def __init__(self, identity: Identity, projection: Projection) -> None:
        self.identity = identity
        self.projection = projection
        self.things: Some[ResourceKey] = ()

    def __repr__(self) -> str:
        return f"Held({self.identity}, {len(self.things)})"


class ProfileLabels:
    """Labels that profiles give to whoever names them; one for all indexes."""

    def __init__(self) -> None:
        self._labels: dict[str, Mapping[str, str]] = {}
        self._with: dict[str, set[str]] = {}

    def of(self, profile: str) -> Mapping[str, str]:
        return self._labels.get(profile, {})

    def that_have(self, label: str) -> Iterable[str]:
        """Names of the profiles that give this label."""
        return self._with.get(label, ())

    def take(self, profile: str, labels: Mapping[str, str]) -> bool:
        """A profile's labels, none if it is gone; whether that changes anything."""
        old = self._labels.pop(profile, {})
        if labels:
            self._labels[profile] = labels
        for label in old.keys() - labels.keys():
            _discard(self._with, label, profile)
        for label in labels.keys() - old.keys():
            self._with.setdefault(label, set()).add(profile)
        return old != labels


Moved = Callable[[Held, Iterable[Watched], Iterable[Watched]], None]
"""Is told when selectors stop to match an identity, and begin to."""


class Selection:
    """Things by identity, and the selectors that are watched."""

    def __init__(self, profiles: ProfileLabels, moved: Moved) -> None:
        self._profiles = profiles
        self._moved = moved
        self._held: dict[Identity, Held] = {}
        self._with_label: Index[str, Held] = Index()
        self._with_profile: Index[str, Held] = Index()
        self._projections: dict[tuple[tuple[str, str], ...], Projection] = {}
        self._by_term: Index[tuple[str, str | None], Projection] = Index()
        self._watched: dict[str, Watched] = {}
        self._by_need: Index[tuple[str, str | None], Watched] = Index()
        self._without_needs: set[Watched] = set()
        self._interest: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many selectors are watched."""
        return len(self._watched)

    def held_by(self, identity: Identity) -> Held | None:
        return self._held.get(identity)

    def with_profile(self, profile: str) -> Iterable[Held]:
        """Identities that name a profile."""
        return self._with_profile.at(profile)

    def held(self) -> Iterable[Held]:
        return self._held.values()

    def selectors(self) -> Iterable[Watched]:
        return self._watched.values()

    # --- things --------------------------------------------------------------------------------------------------

    def move(self, thing: ResourceKey, was: Identity | None, now: Identity | None) -> tuple[Held | None, Held | None]:
        """A thing has another identity, or none any more. Returns what it was held by and is held by.

        ``moved`` is not told of it: whoever calls knows the thing, and what it was.
        """
        old = self._held[was] if was is not None else None
        if was is now:
            return old, old
        new = None
        if now is not None:
            new = self._held.get(now) or self._hold(now)
            new.things = added(new.things, thing)
        if old is not None:
            old.things = without(old.things, thing)
            if not old.things:
                self._let_go(old)
        return old, new

    def _hold(self, identity: Identity) -> Held:
        held = Held(identity, self._project(identity))
        held.projection.held = added(held.projection.held, held)
        self._held[identity] = held
        for label in identity.labels:
            self._with_label.add(label, held)
        for profile in identity.profiles:
            self._with_profile.add(profile, held)
        return held

    def _let_go(self, held: Held) -> None:
        """Its projection stays readable for whoever still has it."""
        identity = held.identity
        del self._held[identity]
        for label in identity.labels:
            self._with_label.discard(label, held)
        for profile in identity.profiles:
            self._with_profile.discard(profile, held)
        self._leave(held)

    def _leave(self, held: Held) -> None:
        projection = held.projection
        projection.held = without(projection.held, held)
        if projection.held:
            return
        del self._projections[projection.content]
        for term in _terms(projection.labels):
            self._by_term.discard(term, projection)
        for watched in projection.watched:
            watched.projections.discard(projection)

    # --- labels --------------------------------------------------------------------------------------------------

    def profile_changed(self, profile: str) -> None:
        """A profile gives other labels than before."""
        for held in list(self._with_profile.at(profile)):
            self._reproject(held)

    def _project(self, identity: Identity) -> Projection:
        labels: dict[str, str] = {}
        for profile in reversed(identity.profiles):  # of several, the first
            labels |= {k: v for k, v in self._profiles.of(profile).items() if k in self._interest}
        labels |= {k: v for k, v in identity.labels.items() if k in self._interest}
        content = tuple(sorted(labels.items()))
        found = self._projections.get(content)
        if found is None:
            found = self._projections[content] = Projection(content)
            for term in _terms(labels):
                self._by_term.add(term, found)
            for watched in self._candidates(labels):
                if watched.selector.matches(labels):
                    found.watched = added(found.watched, watched)
                    watched.projections.add(found)
        return found

    def _candidates(self, labels: Mapping[str, str]) -> set[Watched]:
        found = set(self._without_needs)
        for term in _terms(labels):
            found.update(self._by_need.at(term))
        return found

    def _reproject(self, held: Held) -> None:
        old, new = held.projection, self._project(held.identity)
        if new is old:
            return
        lost = [one for one in old.watched if one not in new.watched]
        gained = [one for one in new.watched if one not in old.watched]
        new.held = added(new.held, held)
        self._leave(held)
        held.projection = new
        if lost or gained:
            self._moved(held, lost, gained)

    # --- selectors -----------------------------------------------------------------------------------------------

    def watch(self, selector: Selector) -> Watched:
        """Follow a selector; ``moved`` is told of what it matches if it is new."""
        watched = self._watched.get(selector.text)
        if watched is not None:
            watched.refs += 1
            return watched
        unknown = [label for label in selector.labels if not self._interest[label]]
        for label in selector.labels:
            self._interest[label] += 1
        for label in unknown:
            self._look_at(label)
        need = min(selector.needs, key=self._breadth, default=None)
        watched = self._watched[selector.text] = Watched(selector, need)
        watched.refs = 1
        if need is None:
            self._without_needs.add(watched)
        for term in need or ():
            self._by_need.add(term, watched)
        for projection in self._possible(need):
            if selector.matches(projection.labels):
                projection.watched = added(projection.watched, watched)
                watched.projections.add(projection)
        for held in list(watched.held()):
            self._moved(held, (), (watched,))
        return watched

    def unwatch(self, watched: Watched) -> None:
        """Follow a selector once less; ``moved`` is not told when it ends."""
        watched.refs -= 1
        if watched.refs:
            return
        del self._watched[watched.selector.text]
        for label in watched.selector.labels:
            self._interest[label] -= 1
            if not self._interest[label]:
                del self._interest[label]
        self._without_needs.discard(watched)
        for term in watched.need or ():
            self._by_need.discard(term, watched)
        for projection in watched.projections:
            projection.watched = without(projection.watched, watched)
        watched.projections.clear()

    def _look_at(self, label: str) -> None:
        """A label that no selector named so far: identities that have it look different now."""
        having = set(self._with_label.at(label))
        for profile in self._profiles.that_have(label):
            having.update(self._with_profile.at(profile))
        for held in having:
            self._reproject(held)

    def _breadth(self, need: frozenset[Term]) -> tuple[int, bool, bool, int]:
        """How much has one of the terms; while little is there, labels that most endpoints have come last."""
        return (
            sum(len(self._by_term.at(term)) for term in need),
            any(term.value is None for term in need),
            any(term.label.startswith("projectcalico.org/") for term in need),
            len(need),
        )

    def _possible(self, need: frozenset[Term] | None) -> Iterable[Projection]:
        if need is None:
            return list(self._projections.values())
        found: set[Projection] = set()
        for term in need:
            found.update(self._by_term.at(term))
        return found


class NamedSelection(Selection):
    """One that knows what holds each thing."""

    def __init__(self, profiles: ProfileLabels, moved: Moved) -> None:
        super().__init__(profiles, moved)
        self._of: dict[ResourceKey, Held] = {}

    def held_of(self, thing: ResourceKey) -> Held | None:
        return self._of.get(thing)

    def put(self, thing: ResourceKey, identity: Identity | None) -> tuple[Held | None, Held | None]:
        """A thing has an identity, or none any more. As ``move``."""
        was = self._of.get(thing)
        old, new = self.move(thing, was.identity if was is not None else None, identity)
        if new is not None:
            self._of[thing] = new
        else:
            self._of.pop(thing, None)
        return old, new


def _terms(labels: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    for label, value in labels.items():
        yield label, value
        yield label, None


def _discard(index: dict[K, set[V]], key: K, value: V) -> None:
    found = index.get(key)
    if found is not None:
        found.discard(value)
        if not found:
            del index[key]
