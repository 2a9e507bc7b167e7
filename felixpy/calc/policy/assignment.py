"""Classes of this node's workload endpoints, and which identity is in which. Pure.

An endpoint's policies are told by its identity, so two pods of one deployment cost one list. Invariant: until
``complete`` no endpoint gets a class that asks something: it would be asked too little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from msgspec import Struct, field

from felixpy.calc.policy.chains_in_use import ChainsInUse
from felixpy.calc.policy.classes import ClassKey, EndpointClass, EndpointClasses, Use, class_name, comment_text
from felixpy.calc.policy.in_force import InForce
from felixpy.calc.policy.numbering import Numbers
from felixpy.calc.policy.order import Asked, asked, owner_name
from felixpy.calc.policy.output import Output
from felixpy.calc.policy.selection import Held, NamedSelection, ProfileLabels, Watched
from felixpy.model.net import FAMILIES
from felixpy.model.policy import Direction, PolicyAction
from felixpy.model.resources import ResourceKey

_OPEN = ((), (), PolicyAction.ALLOW)
"""The content of a class that lets everything through without asking."""

_WORKLOAD_USE = {Direction.INGRESS: Use.WORKLOAD_INGRESS, Direction.EGRESS: Use.WORKLOAD_EGRESS}


class _Class(Struct, eq=False):
    """A class of endpoints in one direction, and the identities that are in it."""

    number: int
    asked: Asked
    held: set[Held] = field(default_factory=set)


class Assignment:
    """Gives identities their classes."""

    def __init__(
        self,
        labels: ProfileLabels,
        in_force: InForce,
        chains: ChainsInUse,
        output: Output,
        without_profile: PolicyAction,
    ) -> None:
        self.workloads = NamedSelection(labels, self._moved)
        self.is_complete = self._starts = False
        self._in_force = in_force
        self._chains = chains
        self._output = output
        self._without_profile = without_profile
        self._classes: dict[Direction, dict[tuple[object, ...], _Class]] = {way: {} for way in Direction}
        self._class_of: dict[Direction, dict[Held, _Class]] = {way: {} for way in Direction}
        self._numbers = {way: Numbers() for way in Direction}
        self._dirty: set[Held] = set()

    # --- what is asked by others ---------------------------------------------------------------------------------

    def adopt(self, numbers: Mapping[tuple[Direction, str], int]) -> None:
        """Numbers of classes by their names, as the kernel has them: before anything is complete. The open class, which
        alone may have a number already, gives it up if the kernel has it for another, or another for it.
        """
        for way in Direction:
            known = {name: number for (of, name), number in numbers.items() if of is way}
            for given in list(self._classes[way].values()):
                others = dict(known)
                own = others.pop(_class_name(way, given.asked), given.number)
                if own != given.number or own in others.values():
                    self._forget(way, given)
            self._numbers[way].adopt(known)

    def _forget(self, way: Direction, given: _Class) -> None:
        """A class is to be given anew."""
        for held in given.held:
            del self._class_of[way][held]
        self._end_class(way, given)
        self._numbers[way] = Numbers()

    def settled(self) -> None:
        """The kernel has all that was told."""
        for numbers in self._numbers.values():
            numbers.settled()

    def highest_number(self) -> int:
        """Below which all numbers are that were ever given."""
        return max(numbers.highest for numbers in self._numbers.values())

    def open_endpoints(self) -> Iterator[ResourceKey]:
        """Those that name no profile and that, in a direction at least, no policy selects: nothing is asked of their
        traffic there."""
        for held in self.workloads.held():
            if held.identity.profiles or self._without_profile is not PolicyAction.ALLOW:
                continue
            if any((found := self._class_of[way].get(held)) and not found.asked.tiers for way in Direction):
                yield from held.things

    def described(self) -> Iterator[tuple[str, int, str, int]]:
        """Direction, number, what is asked, and how many endpoints are in the class."""
        for way, classes in self._classes.items():
            for each in classes.values():
                yield way.value, each.number, _class_words(each.asked), sum(len(held.things) for held in each.held)

    def classes_of(self, endpoint: ResourceKey) -> EndpointClasses:
        held = self.workloads.held_of(endpoint)
        if held is None:
            return _classes(0, 0)
        ingress, egress = self._class_of[Direction.INGRESS].get(held), self._class_of[Direction.EGRESS].get(held)
        return _classes(ingress.number if ingress else 0, egress.number if egress else 0)

    # --- changes -------------------------------------------------------------------------------------------------

    def touch_changed(self, old: Held | None, new: Held | None) -> None:
        """An endpoint has another identity. One that has classes and endpoints is asked what it was."""
        for held in (old, new):
            if held is not None and not (held.things and all(held in of for of in self._class_of.values())):
                self._dirty.add(held)

    def touch(self, held: Iterable[Held]) -> None:
        """These may be asked something else."""
        self._dirty.update(held)

    def complete(self) -> None:
        self.is_complete = self._starts = True
        self.touch(self.workloads.held())

    def use_without_profile(self, action: PolicyAction) -> None:
        if action is not self._without_profile:
            self._without_profile = action
            self.touch(self.workloads.held())

    def _moved(self, held: Held, lost: Iterable[Watched], gained: Iterable[Watched]) -> None:
        self._dirty.add(held)

    def assign(self) -> set[ResourceKey]:
        """Give identities their classes; returns the endpoints whose numbers changed.

        Where all of a class go, the class changes and nobody moves. Otherwise those move that go.
        """
        if not self._dirty:
            self._starts = False
            return set()
        dirty, self._dirty = self._dirty, set()
        wanted = {held: self._asked(held) for held in dirty if held.things}
        moved: set[ResourceKey] = set()
        for way in Direction:
            of = self._class_of[way]
            goals = {held: asks[way] for held, asks in wanted.items()}
            leaving: dict[int, tuple[_Class | None, list[Held]]] = {}
            for held in dirty:
                old, goal = of.get(held), goals.get(held)
                if old is None and goal is None:
                    continue
                if old is not None and goal is not None and _content(old.asked) == _content(goal):
                    continue
                leaving.setdefault(id(old), (old, []))[1].append(held)
            for old, group in leaving.values():
                moved |= self._move(way, old, group, goals)
        self._starts = False
        return moved

    def _move(
        self, way: Direction, old: _Class | None, group: list[Held], goals: Mapping[Held, Asked | None]
    ) -> set[ResourceKey]:
        classes, of = self._classes[way], self._class_of[way]
        by_goal: dict[tuple[object, ...], list[Held]] = {}
        for held in group:
            if goal := goals.get(held):
                by_goal.setdefault(_content(goal), []).append(held)
        kept: tuple[object, ...] | None = None
        if old is not None and len(old.held) == len(group):
            fresh = [content for content in by_goal if content not in classes]
            if fresh:
                kept = max(fresh, key=lambda content: (_endpoints(by_goal[content]), content))
                goal = goals[by_goal[kept][0]]
                assert goal is not None
                self._change_class(way, old, goal)
        usual = self._usual(way, by_goal)
        moved: set[ResourceKey] = set()
        for content, several in by_goal.items():
            if content == kept:
                continue
            goal = goals[several[0]]
            assert goal is not None
            new = classes.get(content) or self._new_class(way, goal, usual=content == usual)
            for held in several:
                new.held.add(held)
                of[held] = new
                moved.update(held.things)
        for held in group:
            if old is not None and of.get(held) is not old:
                old.held.discard(held)
            if goals.get(held) is None:
                of.pop(held, None)
                moved.update(held.things)
                if old is not None:
                    old.held.discard(held)
        if old is not None and not old.held:
            self._end_class(way, old)
        return moved

    def _usual(self, way: Direction, by_goal: Mapping[tuple[object, ...], list[Held]]) -> tuple[object, ...] | None:
        """Which of some classes gets the usual number if it is free: the open one, at a start else the largest."""
        if not self._numbers[way].is_usual_free:
            return None
        if _OPEN in by_goal:
            return _OPEN
        if not self._starts:
            return None
        return max(by_goal, default=None, key=lambda content: (_endpoints(by_goal[content]), content))

    def _asked(self, held: Held) -> dict[Direction, Asked | None]:
        policies = [state for state in self._in_force.selecting(held) if state.workloads is not None]
        found: dict[Direction, Asked | None] = {}
        for way, use in _WORKLOAD_USE.items():
            if not self.is_complete and any(state.asked(use) for state in policies):
                found[way] = None  # what it will be asked is not looked for in every turn of a snapshot
                continue
            answer = asked(
                [state.asked(use) for state in policies],
                self._in_force.tiers,
                held.identity.profiles,
                self._in_force.profiles.get,
                use,
                self._without_profile,
            )
            found[way] = answer if self.is_complete or answer.is_open else None
        return found

    def _new_class(self, way: Direction, goal: Asked, *, usual: bool) -> _Class:
        made = _Class(self._numbers[way].take(_class_name(way, goal), usual=usual), goal)
        self._classes[way][_content(goal)] = made
        self._chains.acquire(goal.chains)
        self._show_class(way, made)
        return made

    def _change_class(self, way: Direction, changed: _Class, goal: Asked) -> None:
        del self._classes[way][_content(changed.asked)]
        self._classes[way][_content(goal)] = changed
        self._chains.exchange(changed.asked.chains, goal.chains)
        changed.asked = goal
        self._show_class(way, changed)

    def _end_class(self, way: Direction, ended: _Class) -> None:
        del self._classes[way][_content(ended.asked)]
        self._chains.release(ended.asked.chains)
        self._numbers[way].give(ended.number)
        for family in FAMILIES:
            self._output.drop(ClassKey(family, way, ended.number))

    def _show_class(self, way: Direction, shown: _Class) -> None:
        asks = shown.asked
        value = EndpointClass(_class_name(way, asks), asks.tiers, asks.profiles, asks.end, _class_comment(asks))
        for family in FAMILIES:
            self._output.put(ClassKey(family, way, shown.number), value)


@lru_cache(1 << 12)
def _classes(ingress: int, egress: int) -> EndpointClasses:
    """One object for all endpoints of the same classes."""
    return EndpointClasses(ingress, egress)


def _content(asks: Asked) -> tuple[object, ...]:
    return asks.tiers, asks.profiles, asks.end


def _endpoints(several: Iterable[Held]) -> int:
    return sum(len(held.things) for held in several)


def _class_name(way: Direction, asks: Asked) -> str:
    return class_name(way, asks.tiers, asks.profiles, asks.end)


def _class_comment(asks: Asked) -> str:
    return comment_text(_class_words(asks))


def _class_words(asks: Asked) -> str:
    names = {chain.name: owner_name(chain.owner) for chain in asks.chains}
    parts = [f"{tier.name} [{' '.join(names[chain] for chain in tier.chains)}]" for tier in asks.tiers]
    parts += [f"profile {names[chain]}" for chain in asks.profiles]
    return ", ".join([*parts, asks.end.value.lower()])
