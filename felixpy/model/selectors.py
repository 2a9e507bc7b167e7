"""Calico's selector language over labels: ``has(zone) && rack in {'a', 'b'}``.

Invariant: a ``Selector`` has been parsed as a whole, so ``matches`` cannot fail. It must never call ``eval`` or
grow the stack with the length of its input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector. Two are equal if they were written alike, apart from spaces at the ends."""

    text: str
    has_global: bool = field(compare=False, default=False)
    _match: Match = field(compare=False, repr=False, default=lambda labels: True)

    def matches(self, labels: Labels) -> bool:
        """Whether an object with these labels is selected."""
        return self._match(labels)

    def __str__(self) -> str:
        return self.text


ALL = Selector("all()")


def parse_selector(text: str) -> Selector:
    """Parse a selector; an empty one is ``all()``.

    Raises:
        ValueError: with the position, counted from 1, where the text stops being a selector.
    """
    if not text.strip(" \t"):
        return ALL
    parser = _Parser(text)
    match = parser.expression(0)
    parser.skip_space()
    if parser.position != len(text):
        raise parser.error("'&&', '||' or the end")
    return Selector(text.strip(" \t"), parser.has_global, match)


class _Parser:
    """Recursive descent; recursion goes by parentheses only."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.has_global = False

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

    def expression(self, depth: int) -> Match:
        if depth > MAX_DEPTH:
            raise ValueError(
                f"selector, position {self.position + 1}: more than {MAX_DEPTH} parentheses inside each other"
            )
        terms = [self.conjunction(depth)]
        while self.take("||"):
            terms.append(self.conjunction(depth))
        return terms[0] if len(terms) == 1 else lambda labels: any(term(labels) for term in terms)

    def conjunction(self, depth: int) -> Match:
        terms = [self.operation(depth)]
        while self.take("&&"):
            terms.append(self.operation(depth))
        return terms[0] if len(terms) == 1 else lambda labels: all(term(labels) for term in terms)

    def operation(self, depth: int) -> Match:
        negated = False
        while self.take("!"):
            negated = not negated
        match = self.atom(depth)
        return (lambda labels: not match(labels)) if negated else match

    def atom(self, depth: int) -> Match:
        if self.take("("):
            inner = self.expression(depth + 1)
            if not self.take(")"):
                raise self.error("')'")
            return inner
        if function := self.take_match(_FUNCTION):
            self.has_global |= function[1] == "global"
            return lambda labels: True
        if has := self.take_match(_HAS):
            present = has[1]
            return lambda labels: present in labels
        if label := self.take_match(_LABEL):
            return self.comparison(label[0])
        raise self.error("a label, has(), all(), '!' or '('")

    def comparison(self, label: str) -> Match:
        operator = self.take_match(_OPERATOR)
        if not operator:
            raise self.error("an operator (==, !=, in, not in, contains, starts with, ends with)")
        word = re.sub(r"[ \t]", "", operator[0])
        if word in ("in", "notin"):
            values = self.set()
            if word == "in":
                return lambda labels: labels.get(label) in values
            return lambda labels: labels.get(label) not in values
        return _COMPARISONS[word](label, self.string())

    def string(self) -> str:
        match = self.take_match(_STRING)
        if not match:
            raise self.error("a text in quotes")
        return match[1] if match[1] is not None else match[2]

    def set(self) -> frozenset[str]:
        if not self.take("{"):
            raise self.error("'{'")
        values = []
        while not self.take("}"):
            values.append(self.string())
            if not self.take(","):
                if not self.take("}"):
                    raise self.error("',' or '}'")
                break
        return frozenset(values)


_COMPARISONS: dict[str, Callable[[str, str], Match]] = {
    "==": lambda label, value: lambda labels: labels.get(label) == value,
    "!=": lambda label, value: lambda labels: labels.get(label) != value,
    "contains": lambda label, value: lambda labels: label in labels and value in labels[label],
    "startswith": lambda label, value: lambda labels: label in labels and labels[label].startswith(value),
    "endswith": lambda label, value: lambda labels: label in labels and labels[label].endswith(value),
}
