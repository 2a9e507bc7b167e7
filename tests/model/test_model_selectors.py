"""Calico's selector language."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.model.selectors import ALL, Selector, conjunction, equals, has, is_in, negation, not_in, parse_selector

LABELS = {"zone": "a", "rack": "r-12", "in": "x", "has": "y", "a.b/c": "1", "empty": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        (" \t", True),
        ("all()", True),
        ("global()", True),
        ("!all()", False),
        ("!!all()", True),
        ("has(zone)", True),
        ("has( zone )", True),
        ("has(row)", False),
        ("!has(row)", True),
        ("zone == 'a'", True),
        ('zone == "a"', True),
        ("zone=='b'", False),
        ("zone != 'b'", True),
        ("row != 'b'", True),
        ("row == 'b'", False),
        ("empty == ''", True),
        ("zone in {'a', 'b'}", True),
        ("zone in{'b'}", False),
        ("zone in {}", False),
        ("zone in {'a',}", True),
        ("row in {'a'}", False),
        ("zone not in {'a'}", False),
        ("zone notin {'b'}", True),
        ("row not in {'a'}", True),
        ("rack contains '-1'", True),
        ("row contains ''", False),
        ("rack starts with 'r-'", True),
        ("rack startswith 'x'", False),
        ("rack ends with '12'", True),
        ("rack endswith '13'", False),
        ("in == 'x' && has == 'y'", True),
        ("in in {'x'}", True),
        ("a.b/c == '1'", True),
        ("has(row) || zone == 'a' && has(rack)", True),
        ("(has(row) || zone == 'a') && has(row)", False),
        ("!(zone == 'a')", False),
        ("! zone == 'a'", False),
        ("zone == 'a' || zone == 'b' || zone == 'c'", True),
    ],
)
def test_a_selector_matches(text: str, expected: bool) -> None:
    assert parse_selector(text).matches(LABELS) is expected


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("zone = 'a'", 6),
        ("zone", 5),
        ("zone == a", 9),
        ("zone == 'a", 9),
        ("zone == 'a' &&", 15),
        ("zone == 'a' zone", 13),
        ("(zone == 'a'", 13),
        ("zone in 'a'", 6),
        ("zone in {'a'", 13),
        ("zone in {'a' 'b'}", 14),
        ("has (zone)", 5),
        ("all ()", 5),
        ("has()", 4),
        ("zone == 'a'\n", 12),
        ("\u00e4 == 'a'", 1),
        ("&& has(a)", 1),
        ("()", 2),
        ("!", 2),
    ],
)
def test_a_bad_selector_is_refused_with_its_position(text: str, position: int) -> None:
    with pytest.raises(ValueError, match=f"position {position}: expected ") as caught:
        parse_selector(text)
    assert "\n" not in str(caught.value)


def test_depth_is_limited_and_length_is_not() -> None:
    assert parse_selector("(" * 60 + "all()" + ")" * 60).matches({})
    with pytest.raises(ValueError, match="parentheses"):
        parse_selector("(" * 100_000)
    assert parse_selector("!" * 100_000 + "all()").matches({})
    assert not parse_selector(" || ".join(["has(a)"] * 10_000)).matches({})


def test_use_of_global_is_known() -> None:
    assert parse_selector("has(a) || global()").has_global
    assert not parse_selector("global == 'a'").has_global
    assert parse_selector(" all() ") == ALL


@given(st.text("azone&|!()='\"{}, \tinhasl.", max_size=40), st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
def test_any_text_matches_or_is_refused(text: str, labels: dict[str, str]) -> None:
    try:
        selector = parse_selector(text)
    except ValueError:
        return
    negated = parse_selector(f"!({text})") if text.strip(" \t") else None
    if negated:
        assert negated.matches(labels) is not selector.matches(labels)


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("all()", []),
        ("has(a)", [{("a", None)}]),
        ("!has(a)", []),
        ("a == '1'", [{("a", "1")}]),
        ("a != '1'", []),
        ("a in {'1', '2'}", [{("a", "1"), ("a", "2")}]),
        ("a in {}", [set()]),
        ("a starts with '1'", [{("a", None)}]),
        ("has(a) && b == '1' && c in {'1', '2'}", [{("a", None)}, {("b", "1")}, {("c", "1"), ("c", "2")}]),
        ("has(a) && b != '1'", [{("a", None)}]),
        ("a == '1' || b == '2'", [{("a", "1"), ("b", "2")}]),
        ("a == '1' && has(c) || b == '2'", [{("a", "1"), ("b", "2")}]),
        ("a == '1' || b != '2'", []),
        ("(a == '1' || b == '2') && all()", [{("a", "1"), ("b", "2")}]),
    ],
)
def test_what_every_match_has_is_known(text: str, needs: list[set[tuple[str, str | None]]]) -> None:
    assert list(parse_selector(text).needs) == needs


_NAMES = st.sampled_from(["a", "b", "in"])
_VALUES = st.sampled_from(["", "1", "it's"])
_SELECTORS = st.recursive(
    st.one_of(
        st.just(ALL),
        st.builds(has, _NAMES),
        st.builds(equals, _NAMES, _VALUES),
        st.builds(is_in, _NAMES, st.lists(_VALUES, max_size=2)),
        st.builds(not_in, _NAMES, st.lists(_VALUES, max_size=2)),
        st.sampled_from([parse_selector("a contains '1' || b ends with 's'"), parse_selector("global() || has(b)")]),
    ),
    lambda inner: st.one_of(st.builds(negation, inner), st.builds(conjunction, inner, inner)),
    max_leaves=6,
)


@given(_SELECTORS, st.dictionaries(_NAMES, _VALUES))
def test_what_is_made_of_selectors_reads_back_and_its_needs_hold(selector: Selector, labels: dict[str, str]) -> None:
    again = parse_selector(selector.text)
    assert again.expression == selector.expression
    assert again.matches(labels) is selector.matches(labels)
    if selector.matches(labels):
        for need in selector.needs:
            assert any(t.label in labels and t.value in (None, labels[t.label]) for t in need)
    assert selector.matches(labels) is selector.matches({k: v for k, v in labels.items() if k in selector.labels})
    assert selector.prefixed("p.").matches({f"p.{k}": v for k, v in labels.items()}) is selector.matches(labels)


def test_selectors_are_equal_if_they_were_written_alike() -> None:
    one, same, other = Selector("has(zone)"), parse_selector("has(zone)"), parse_selector("has( zone )")
    assert one is not same
    assert one == same
    assert (one != same, one != other) == (False, True)  # a struct answers this by itself if it is not told how
    assert one != "has(zone)"
    assert hash(one) == hash(same)
