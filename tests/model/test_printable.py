"""Words from outside do not turn or break the lines of a terminal."""

from __future__ import annotations

from felixpy.model.net import printable


def test_what_turns_breaks_or_hides_is_escaped_and_letters_are_not() -> None:
    assert printable("a\u202eb\u2028c\x1b[31m\nd\u200b") == "a\\u202eb\\u2028c\\x1b[31m\\nd\\u200b"
    assert printable("Größe 節点 → ok") == "Größe 節点 → ok"
