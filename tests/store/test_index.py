"""The index: keys by place, few or many."""

from __future__ import annotations

import random

from felixpy.store.index import FEW, Index


def test_it_is_a_dictionary_of_sets() -> None:
    """Random changes around the number at which a place changes its shape."""
    index: Index[str, int] = Index()
    model: dict[str, set[int]] = {place: set() for place in "abc"}
    chance = random.Random(1)
    for _ in range(5_000):
        place, key = chance.choice("abc"), chance.randrange(2 * FEW)
        if chance.random() < 0.5:
            model[place].add(key)
            found = index.add(place, key)
        else:
            model[place].discard(key)
            found = index.discard(place, key)
        assert set(found) == model[place]
        assert len(found) == len(model[place])
        assert {place: set(index.at(place)) for place in "abc"} == model


def test_a_place_without_keys_takes_no_room() -> None:
    index: Index[str, int] = Index()
    for key in range(3 * FEW):
        index.add("many", key)
    index.add("one", 1)
    assert index.discard("never", 1) == ()
    for key in range(3 * FEW):
        index.discard("many", key)
    index.discard("one", 1)
    assert vars(index) == {"_at": {}}
