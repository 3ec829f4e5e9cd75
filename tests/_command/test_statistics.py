"""Intervals, paired differences, Holm and shares, against hand-computed ones and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steppe._command.statistics import difference, estimate, holm, paired, share, values_to_tell

values = st.lists(st.floats(0, 1), min_size=3, max_size=12)


def test_interval_by_hand() -> None:
    # 1, 2, 3: s = 1, t(.975, 2) = 4.30265, half-width 4.30265 / sqrt(3)
    found = estimate([1.0, 2.0, 3.0])
    assert found is not None
    assert found.mean == 2.0
    assert found.ci95 == pytest.approx(2.48414, abs=1e-5)


@given(values)
def test_interval_against_scipy(numbers: list[float]) -> None:
    found = estimate(numbers)
    assert found is not None and found.ci95 is not None
    error = np.std(numbers, ddof=1) / math.sqrt(len(numbers))
    low, _ = (
        stats.t.interval(0.95, len(numbers) - 1, loc=np.mean(numbers), scale=error) if error > 0 else (found.mean,) * 2
    )
    assert found.mean - found.ci95 == pytest.approx(low, abs=1e-9)


def test_interval_of_few() -> None:
    assert estimate([]) is None
    single = estimate([0.9])
    assert single is not None and single.ci95 is None and single.p is None
    pair = estimate([0.9, 0.8])
    assert pair is not None and (pair.ci95, pair.p, pair.n) == (None, None, 2)
    same = estimate([0.9, 0.9, 0.9])
    assert same is not None and same.ci95 == 0.0 and same.p == 0.0


def test_paired_takes_common_seeds() -> None:
    assert paired({0: 3.0, 1: 5.0, 7: 1.0}, {1: 1.0, 0: 1.0, 2: 9.0}) == [2.0, 4.0]


def test_equal_differences_tell_nothing_of_their_spread() -> None:
    """Two of 800 test images more with every seed: no interval, and nothing clear."""
    found = difference([0.9125 - 0.91, 0.9 - 0.8975, 0.9 - 0.8975])
    assert found is not None and found.mean == pytest.approx(0.0025)
    assert (found.ci95, found.p, found.n) == (None, None, 3)
    assert not found.above_zero
    assert difference([0.0] * 3) == estimate([0.0] * 3), "the same training twice differs by nothing"
    assert difference([0.1, 0.2, 0.2]) == estimate([0.1, 0.2, 0.2]) and difference([0.1]) == estimate([0.1])
    small = [1e-10, 2e-10, 2e-10]
    assert difference(small) == estimate(small), "an error may be small itself"
    assert difference([]) is None and share([0.1] * 3, [0.2] * 3) is None


def test_holm_by_hand() -> None:
    # .01 <= .05/3, .02 <= .05/2, .04 <= .05/1; without .04 passing .03 > .05/2 nothing after it counts
    assert holm({"a": 0.04, "b": 0.01, "c": 0.02}) == {"a", "b", "c"}
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == {"b"}
    assert holm({}) == set()


def test_share_by_hand() -> None:
    assert share([0.1, 0.2], [0.2, 0.21, 0.22]) is None  # not of the same seeds
    found = share([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert found is None  # 4 ± 4.97: the whole is not clear of zero
    found = share([1.0, 1.1, 0.9], [2.0, 2.2, 1.8])
    assert found == pytest.approx((0.5, 0.5, 0.5))


def test_share_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    hits, tries = 0, 2000
    for _ in range(tries):
        whole = rng.normal(1.0, 0.2, 6)
        part = 0.7 * whole + rng.normal(0.1, 0.2, 6)
        found = share(part.tolist(), whole.tolist())
        hits += found is not None and found[1] <= 0.8 <= found[2]
    assert 0.93 < hits / tries < 0.97


@pytest.mark.parametrize("tests", [1, 5])
def test_how_many_values_tell_a_mean_from_zero(tests: int) -> None:
    """Of that many values with this deviation the interval just leaves out zero; the range covers four of five."""
    rng = np.random.default_rng(0)
    found = estimate(list(rng.normal(0.5, 1, 6)))
    assert found is not None and found.ci95 is not None
    deviation = found.ci95 * math.sqrt(6) / stats.t.ppf(0.975, 5)
    about, low, high = values_to_tell(found, tests, most=10_000)

    def half(m: int) -> float:
        return float(stats.t.ppf(1 - 0.025 / tests, m - 1) * deviation / math.sqrt(m))

    assert half(about) <= found.mean < half(about - 1) and low < about < high
    draws = rng.normal(0, deviation, (2000, 6)).std(1, ddof=1) / deviation
    bounds = [math.sqrt(5 / stats.chi2.ppf(share, 5)) for share in (0.9, 0.1)]
    assert np.mean((1 / draws > bounds[0]) & (1 / draws < bounds[1])) == pytest.approx(0.8, abs=0.03)
    assert values_to_tell(found, tests, most=5)[2] == 6
