"""A radius that is a budget of loss: the rise to first order stays within it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.test_ascent import RADII, SHAPES, Case, expected, same

import steppe
from steppe.ascent import SCOPES, Adaptive, Ascent
from steppe.curves import Linear, LossBudget


@given(SHAPES, st.integers(0, 50), st.lists(RADII, min_size=1, max_size=3), st.sampled_from([1e-3, 0.1, 3.0, 1e9]))
@settings(max_examples=20)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_rise_to_first_order_is_within_the_budget(scale, scope, shapes, seed, radii, sigma):
    """eps as without a budget, times min(1, sigma / <g, eps>), whatever scale the gradient carries."""
    case = Case(shapes, seed, radii=radii)
    wanted = expected(case, scope, 0.01)
    rise = sum(float((case.g[k].numpy() * wanted[k]).sum()) for k in wanted)
    ascent = Ascent(LossBudget(sigma, 1.0), scope=scope, metric=Adaptive())
    handed = {k: g * scale for k, g in case.g.items()}
    out, _ = ascent.perturbation(case.w, handed, case.rho, case.groups, {}, scale, ascent.budget(0))
    shorter = min(1.0, sigma / rise) if rise else 1.0
    same({k: e.numpy() for k, e in out.items()}, {k: shorter * e for k, e in wanted.items()}, rtol=1e-10)


def test_a_zero_gradient_has_no_rise_and_no_perturbation():
    case = Case([[2, 2], [2]], 0)
    case.g = {k: torch.zeros_like(g) for k, g in case.g.items()}
    ascent = Ascent(LossBudget(0.1, 1.0))
    out, _ = ascent.perturbation(case.w, case.g, case.rho, case.groups, {}, 1.0, ascent.budget(0))
    assert not any(e.any() for e in out.values())


def test_the_radius_of_a_budget_is_the_largest_and_none_without_one():
    ascent = Ascent(LossBudget(Linear(0.0, 1.0, 2), lambda t: 0.5 + t))
    assert [ascent.radius(t, None) for t in range(3)] == [0.0, 1.5, 2.5]
    assert [ascent.radius(t, {"rho": 0.3}) for t in range(2)] == [0.0, 0.3]
    assert ascent.reads_scale and Ascent(0.1).budget(0) is None


def test_a_budget_needs_the_gradient():
    with pytest.raises(ValueError, match="expected a direction made of this step's gradient"):
        Ascent(LossBudget(0.1, 1.0), steppe.Momentum())
