"""Order statistics against the standard library's, and the mark of a noisy series."""

from __future__ import annotations

import statistics as standard

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics import quantile, summarise

SAMPLES = st.lists(st.floats(0, 1e6), min_size=2, max_size=50)


@given(SAMPLES)
def test_the_median_is_the_standard_library_s(samples: list[float]) -> None:
    assert summarise(samples).median == pytest.approx(standard.median(samples))


@given(SAMPLES)
def test_percentiles_are_the_standard_library_s(samples: list[float]) -> None:
    percentiles = standard.quantiles(samples, n=100, method="inclusive")
    found = summarise(samples)
    assert found.p90 == pytest.approx(percentiles[89])
    assert found.p99 == pytest.approx(percentiles[98])
    assert (found.minimum, found.maximum, found.samples) == (min(samples), max(samples), len(samples))


def test_one_sample_is_every_quantile() -> None:
    assert summarise([4.0])[:5] == (4.0,) * 5


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


def test_a_wide_series_is_noisy_and_a_short_one_is_not() -> None:
    assert summarise([1.0] * 8 + [9.0] * 2).noisy
    assert not summarise([1.0] * 10).noisy
    assert not summarise([1.0, 9.0]).noisy
