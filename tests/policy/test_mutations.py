"""The deliberate mistakes still have their places; that tests notice them is what ``tests.policy.mutations`` shows."""

from __future__ import annotations

import pytest

from tests.policy.mutations import MUTATIONS, ROOT, Mutation


def test_there_are_enough() -> None:
    assert len(MUTATIONS) >= 30
    assert len(set(MUTATIONS)) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.file} {mutation.old[:30]}")
def test_a_mistake_has_its_place(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.new not in (mutation.old, "")
