"""Curves: end points, means, monotonicity, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.curves import Cosine, FollowLR, Linear, LossBudget, Piecewise, Quotient, Through
from steppe.methods._probability import SCHEDULES, probability

VALUES = st.floats(0, 1)
STEPS = st.integers(1, 100)


@given(VALUES, VALUES, st.integers(0, 300), st.integers(0, 300))
def test_piecewise_jumps_after_its_boundary(before, after, boundary, t):
    assert Piecewise(before, after, boundary)(t) == (before if t <= boundary else after)


def test_piecewise_takes_a_boundary_between_two_steps():
    curve = Piecewise(0.0, 1.0, 2.5)
    assert [curve(t) for t in range(5)] == [0, 0, 0, 1, 1]


@given(VALUES, VALUES, STEPS)
@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_ends_and_bounds(kind, start, end, steps):
    curve = kind(start, end, steps)
    assert curve(0) == start
    assert curve(steps) == pytest.approx(end, abs=1e-15)
    assert curve(3 * steps) == curve(steps), "constant after T"
    low, high = min(start, end) - 1e-15, max(start, end) + 1e-15
    values = [curve(t) for t in range(steps + 1)]
    assert all(low <= v <= high for v in values)
    rising = [b - a for a, b in zip(values, values[1:], strict=False)]
    sign = 1 if end >= start else -1
    assert all(sign * r >= -1e-15 for r in rising)
    assert sum(values) / (steps + 1) == pytest.approx((start + end) / 2, abs=1e-12)


def test_linear_and_cosine_by_hand():
    assert [Linear(1.0, 0.0, 4)(t) for t in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    expected = [0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1]
    assert [Cosine(0.0, 1.0, 4)(t) for t in range(5)] == pytest.approx(expected, abs=1e-15)


def test_straight_lines_through_points():
    curve = Through(((2, 0.0), (4, 1.0), (8, 0.5)))
    assert [curve(t) for t in range(11)] == [0, 0, 0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5]
    assert not Through.steps, "its values are no numbers of steps that follow a host's without a word"
    assert Through(((3, 0.7),))(0) == Through(((3, 0.7),))(9) == 0.7


@given(st.floats(0, 2), st.floats(0.01, 1), st.floats(0, 8))
def test_quotient_of_a_number(numerator, denominator, maximum):
    assert Quotient(numerator, denominator, maximum)(7) == min(numerator / denominator, maximum)


def test_quotient_of_a_curve_is_capped_where_the_curve_starts():
    curve = Quotient(1.0, Linear(0.0, 1.0, 4), 3.0)
    assert [curve(t) for t in range(5)] == [3.0, 3.0, 2.0, 1 / 0.75, 1.0]
    assert Quotient(1.0, 0.0, 5.0)(0) == 5.0
    assert Quotient(0.0, 0.5, 5.0)(0) == 0.0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_follow_lr_moves_between_its_radii(low, high, share):
    curve = FollowLR(rho_max=high, rho_min=low, lr_max=0.3, lr_min=0.1)
    assert curve.at({"lr": 0.1}) == low
    assert curve.at({"lr": 0.3}) == pytest.approx(high, abs=1e-15)
    assert curve.at({"lr": 0.1 + share * 0.2}) == pytest.approx(low + share * (high - low), abs=1e-12)


def test_follow_lr_stays_within_its_radii_beyond_the_rates():
    curve = FollowLR(rho_max=0.2, rho_min=0.1, lr_max=0.3, lr_min=0.1)
    assert curve.at({"lr": 9.0}) == curve.at({"lr": 0.3 * (1 - 1e-9)}) == 0.2 > curve.at({"lr": 0.3 * (1 - 1e-5)})
    assert curve.at({"lr": 0.0}) == 0.1


def test_follow_lr_is_a_radius_and_no_curve_of_t():
    assert not callable(FollowLR(0.2, 0.1, 0.3))


@given(VALUES, VALUES, STEPS)
@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_a_curve_between_probabilities_is_a_probability_to_the_last_bit(kind, start, end, steps):
    """Bernoulli refuses 1 + 2^-52."""
    assert all(0 <= kind(start, end, steps)(t) <= 1 for t in {0, 1, steps // 3, steps // 2, steps - 1, steps})


@given(VALUES, STEPS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedules_of_rst_are_probabilities_at_every_step(schedule, p, steps):
    chance = probability(p, schedule, None, steps)
    for t in {0, 1, steps // 2, steps - 1, steps}:
        assert 0 <= (chance(t) if callable(chance) else chance) <= 1


REFUSED = {
    "piecewise nan": lambda: Piecewise(math.nan, 1.0, 3),
    "piecewise word": lambda: Piecewise(0.0, "one", 3),
    "piecewise boundary": lambda: Piecewise(0.0, 1.0, math.inf),
    "linear none": lambda: Linear(0.0, None, 3),
    "linear no steps": lambda: Linear(0.0, 1.0, 0),
    "cosine half a step": lambda: Cosine(0.0, 1.0, 2.5),
    "quotient below 0": lambda: Quotient(-1.0, 0.5, 1.0),
    "quotient maximum": lambda: Quotient(1.0, 0.5, -1.0),
    "quotient denominator word": lambda: Quotient(1.0, "half", 1.0),
    "quotient denominator nothing": lambda: Quotient(1.0, None, 1.0),
    "a budget below 0": lambda: LossBudget(-0.1, 1.0),
    "a budget without a radius": lambda: LossBudget(0.1, None),
    "no points": lambda: Through(()),
    "points that are none": lambda: Through((0.1, 0.2)),
    "steps that fall": lambda: Through(((4, 0.1), (4, 0.2))),
    "a value that is none": lambda: Through(((4, math.nan),)),
    "follow below 0": lambda: FollowLR(0.2, -0.1, 0.3),
    "follow equal rates": lambda: FollowLR(0.2, 0.1, 0.3, 0.3),
    "follow nan rate": lambda: FollowLR(0.2, 0.1, math.nan),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    with pytest.raises((ValueError, TypeError), match="was given.*expected") as caught:
        REFUSED[name]()
    assert "\n" not in str(caught.value)
