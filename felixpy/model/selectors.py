"""Calico's selector language over labels: ``has(zone) && rack in {'a', 'b'}``.

Invariant: a ``Selector`` has been parsed as a whole, or made of such, so ``matches`` cannot fail. It must never call
``eval`` or grow the stack with the length of its input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

Labels = Mapping[str, str]
Match = Callable[[Labels], bool]

MAX_DEPTH = 64

_SPACE = re.compile(r"[ \t]*")
_LABEL = re.compile(r"[A-Za-z0-9_./-]{1,512}")
_STRING = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_FUNCTION = re.compile(r"(all|global)\([ \t]*\)")
_HAS = re.compile(r"has\([ \t]*([A-Za-z0-9_./-]{1,512})[ \t]*\)")
_OPERATOR = re.compile(
    r"==|!=|(?:not[ \t]*)?in(?=[ \t]*\{)|(?:contains|starts[ \t]*with|ends[ \t]*with)(?=[ \t]*['\"])"
)


class Term(NamedTuple):
    """One of the things that a match needs: a label with this value, or with any if ``value`` is None."""

    label: str
    value: str | None


Needs = tuple[frozenset[Term], ...]
"""A match has at least one term of each; of an empty one there is no match."""


class Function(NamedTuple):
    """``all()`` or ``global()``."""

    name: str


class Comparison(NamedTuple):
    """A label and a word of the language: ``has``, ``==``, ``!=``, ``in``, ``notin``, ``contains`` and so on."""

    word: str
    label: str
    values: tuple[str, ...] = ()


class Negation(NamedTuple):
    inner: Expression


class Junction(NamedTuple):
    """Two or more terms with ``&&`` or ``||`` between them."""

    word: str
    terms: tuple[Expression, ...]


Expression = Function | Comparison | Negation | Junction


class Selector(Struct, frozen=True, eq=False):
    """A parsed selector. Two are equal if they were written alike, apart from spaces at the ends.

    ``labels`` are those that it looks at, ``needs`` what every match has: an index can pass over whatever lacks one.
    """

    text: str
    has_global: bool = False
    expression: Expression = Function("all")
    labels: frozenset[str] = frozenset()
    needs: Needs = ()
    _match: Match = lambda labels: True

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Selector) and self.text == other.text)

    def __ne__(self, other: object) -> bool:
        return not self == other  # the struct's own knows nothing of ours

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Selector({self.text!r})"

    def matches(self, labels: Labels) -> bool:
        """Whether an object with these labels is selected."""
        return self._match(labels)

    @property
    def is_all(self) -> bool:
        """Nothing but ``all()``, or empty."""
        return self.expression == Function("all")

    @property
    def is_global(self) -> bool:
        """Nothing but ``global()``."""
        return self.expression == Function("global")

    def prefixed(self, prefix: str) -> Selector:
        """The same selector over labels whose names begin with ``prefix``."""
        return _selector(_prefixed(self.expression, prefix))

    def __str__(self) -> str:
        return self.text


ALL = Selector("all()")


@lru_cache(maxsize=4096)
def parse_selector(text: str) -> Selector:
    """Parse a selector; an empty one is ``all()``.

    Raises:
        ValueError: with the position, counted from 1, where the text stops being a selector.
    """
    if not text.strip(" \t"):
        return ALL
    parser = _Parser(text)
    expression = parser.expression(0)
    parser.skip_space()
    if parser.position != len(text):
        raise parser.error("'&&', '||' or the end")
    return _selector(expression, text.strip(" \t"))


def equals(label: str, value: str) -> Selector:
    """``label == 'value'``."""
    return _selector(Comparison("==", label, (value,)))


def is_in(label: str, values: Iterable[str]) -> Selector:
    """``label in {...}``, in the order of the values."""
    return _selector(Comparison("in", label, tuple(values)))


def not_in(label: str, values: Iterable[str]) -> Selector:
    return _selector(Comparison("notin", label, tuple(values)))


def has(label: str) -> Selector:
    return _selector(Comparison("has", label))


def negation(selector: Selector) -> Selector:
    expression = selector.expression
    return _selector(expression.inner if isinstance(expression, Negation) else Negation(expression))


def conjunction(*selectors: Selector) -> Selector:
    """All of them; ``all()`` adds nothing, and none at all is ``all()``."""
    terms: dict[Expression, None] = {}
    for selector in selectors:
        expression = selector.expression
        if isinstance(expression, Junction) and expression.word == "&&":
            terms |= dict.fromkeys(expression.terms)
        elif not selector.is_all:
            terms[expression] = None
    if not terms:
        return ALL
    return _selector(next(iter(terms)) if len(terms) == 1 else Junction("&&", tuple(terms)))


@lru_cache(maxsize=4096)  # many policies have the same ones
def _selector(expression: Expression, text: str = "") -> Selector:
    found: set[str] = set()
    has_global = _collect(expression, found)
    return Selector(
        text or _render(expression), has_global, expression, frozenset(found), _needs(expression), _compile(expression)
    )


# Expressions nest by parentheses only, at most MAX_DEPTH deep as written, so these may recurse.


def _collect(expression: Expression, labels: set[str]) -> bool:
    """Gather the labels; returns whether ``global()`` is used."""
    if isinstance(expression, Function):
        return expression.name == "global"
    if isinstance(expression, Comparison):
        labels.add(expression.label)
        return False
    if isinstance(expression, Negation):
        return _collect(expression.inner, labels)
    found = [_collect(term, labels) for term in expression.terms]  # each, also after one that says yes
    return any(found)


def _needs(expression: Expression) -> Needs:
    if isinstance(expression, Comparison):
        if expression.word in ("==", "in"):
            return (frozenset(Term(expression.label, value) for value in expression.values),)
        return () if expression.word in ("!=", "notin") else (frozenset((Term(expression.label, None),)),)
    if not isinstance(expression, Junction):
        return ()
    needs = [_needs(term) for term in expression.terms]
    if expression.word == "&&":
        return tuple(dict.fromkeys(need for several in needs for need in several))
    if not all(needs):
        return ()
    return (frozenset().union(*(min(several, key=_breadth) for several in needs)),)


def _breadth(need: frozenset[Term]) -> tuple[bool, int]:
    """Values before mere presence, then the fewest."""
    return any(term.value is None for term in need), len(need)


def _prefixed(expression: Expression, prefix: str) -> Expression:
    if isinstance(expression, Comparison):
        return expression._replace(label=prefix + expression.label)
    if isinstance(expression, Negation):
        return Negation(_prefixed(expression.inner, prefix))
    if isinstance(expression, Junction):
        return Junction(expression.word, tuple(_prefixed(term, prefix) for term in expression.terms))
    return expression


_WORDS = {"notin": "not in", "startswith": "starts with", "endswith": "ends with"}


def _render(expression: Expression) -> str:
    if isinstance(expression, Function):
        return f"{expression.name}()"
    if isinstance(expression, Negation):
        inner = _render(expression.inner)
        return f"!({inner})" if isinstance(expression.inner, Junction) else f"!{inner}"
    if isinstance(expression, Junction):
        return f" {expression.word} ".join(
            f"({_render(term)})" if isinstance(term, Junction) else _render(term) for term in expression.terms
        )
    if expression.word == "has":
        return f"has({expression.label})"
    values = ", ".join(_quoted(value) for value in expression.values)
    if expression.word in ("in", "notin"):
        values = f"{{{values}}}"
    return f"{expression.label} {_WORDS.get(expression.word, expression.word)} {values}"


def _quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


def _compile(expression: Expression) -> Match:
    if isinstance(expression, Function):
        return lambda labels: True
    if isinstance(expression, Negation):
        inner = _compile(expression.inner)
        return lambda labels: not inner(labels)
    if isinstance(expression, Junction):
        terms = [_compile(term) for term in expression.terms]
        if expression.word == "&&":
            return lambda labels: all(term(labels) for term in terms)
        return lambda labels: any(term(labels) for term in terms)
    return _COMPARISONS[expression.word](expression.label, expression.values)


class _Parser:
    """Recursive descent; recursion goes by parentheses only."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def error(self, expected: str) -> ValueError:
        rest = self.text[self.position : self.position + 16]
        found = ascii(rest) if rest else "the end"
        return ValueError(f"selector, position {self.position + 1}: expected {expected}, found {found}")

    def skip_space(self) -> None:
        match = _SPACE.match(self.text, self.position)
        if match:
            self.position = match.end()

    def take(self, literal: str) -> bool:
        self.skip_space()
        if not self.text.startswith(literal, self.position):
            return False
        self.position += len(literal)
        return True

    def take_match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.skip_space()
        match = pattern.match(self.text, self.position)
        if match:
            self.position = match.end()
        return match

    def expression(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise ValueError(
                f"selector, position {self.position + 1}: more than {MAX_DEPTH} parentheses inside each other"
            )
        terms = [self.conjunction(depth)]
        while self.take("||"):
            terms.append(self.conjunction(depth))
        return terms[0] if len(terms) == 1 else Junction("||", tuple(terms))

    def conjunction(self, depth: int) -> Expression:
        terms = [self.operation(depth)]
        while self.take("&&"):
            terms.append(self.operation(depth))
        return terms[0] if len(terms) == 1 else Junction("&&", tuple(terms))

    def operation(self, depth: int) -> Expression:
        negated = False
        while self.take("!"):
            negated = not negated
        inner = self.atom(depth)
        return Negation(inner) if negated else inner

    def atom(self, depth: int) -> Expression:
        if self.take("("):
            inner = self.expression(depth + 1)
            if not self.take(")"):
                raise self.error("')'")
            return inner
        if function := self.take_match(_FUNCTION):
            return Function(function[1])
        if present := self.take_match(_HAS):
            return Comparison("has", present[1])
        if label := self.take_match(_LABEL):
            return self.comparison(label[0])
        raise self.error("a label, has(), all(), '!' or '('")

    def comparison(self, label: str) -> Expression:
        operator = self.take_match(_OPERATOR)
        if not operator:
            raise self.error("an operator (==, !=, in, not in, contains, starts with, ends with)")
        word = re.sub(r"[ \t]", "", operator[0])
        values = self.set() if word in ("in", "notin") else (self.string(),)
        return Comparison(word, label, values)

    def string(self) -> str:
        match = self.take_match(_STRING)
        if not match:
            raise self.error("a text in quotes")
        return match[1] if match[1] is not None else match[2]

    def set(self) -> tuple[str, ...]:
        if not self.take("{"):
            raise self.error("'{'")
        values = []
        while not self.take("}"):
            values.append(self.string())
            if not self.take(","):
                if not self.take("}"):
                    raise self.error("',' or '}'")
                break
        return tuple(values)


def _in(label: str, values: tuple[str, ...]) -> Match:
    among = frozenset(values)
    return lambda labels: labels.get(label) in among


def _not_in(label: str, values: tuple[str, ...]) -> Match:
    among = frozenset(values)
    return lambda labels: labels.get(label) not in among


def _equal(label: str, values: tuple[str, ...]) -> Match:
    value = values[0]
    return lambda labels: labels.get(label) == value


def _unequal(label: str, values: tuple[str, ...]) -> Match:
    value = values[0]
    return lambda labels: labels.get(label) != value


_COMPARISONS: dict[str, Callable[[str, tuple[str, ...]], Match]] = {
    "has": lambda label, values: lambda labels: label in labels,
    "==": _equal,
    "!=": _unequal,
    "in": _in,
    "notin": _not_in,
    "contains": lambda label, values: lambda labels: label in labels and values[0] in labels[label],
    "startswith": lambda label, values: lambda labels: label in labels and labels[label].startswith(values[0]),
    "endswith": lambda label, values: lambda labels: label in labels and labels[label].endswith(values[0]),
}
