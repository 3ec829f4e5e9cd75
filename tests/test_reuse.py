"""Steps that reuse a push: its closed form over two steps, its guard, and what is only rounding."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.test_combine import SHAPES, ascended, copies, drawn, flat, near

from steppe.combine import PUSHES, Combine, Combined, Mix, Replace, Reuse, SurrogateGap
from steppe.curves import Linear


@given(SHAPES, st.integers(0, 50), st.floats(0.01, 2), st.sampled_from(["paper", "natural", "guarded"]))
@settings(max_examples=20)
@pytest.mark.parametrize("refresh", [Replace(), Mix(0.3), Mix(1.0), Mix(0.0), SurrogateGap(0.7)], ids=repr)
def test_reuse_over_two_steps(refresh, shapes, seed, alpha, push):
    g, d, later = (drawn(shapes, seed + i) for i in range(3))
    x, y, z = flat(g), flat(d), flat(later)
    part = Reuse(alpha, push, refresh)
    out = ascended(part, g, d)
    near(out.grads, flat(ascended(refresh, g, d).grads), rtol=1e-11)
    across = y - (y @ x) / (x @ x) * x
    if np.linalg.norm(across) < 1e-6:
        return  # parallel in one dimension: see below
    near(out.memory["g_v"], across, rtol=1e-9)
    near(part.skipped(1, copies(later), out.memory), z + factor(push, alpha, x, across, z) * across, rtol=1e-9)


def factor(push, alpha, x, across, z):
    """c of d = z + c g_v, from the gradient x of the refresh, g_v = across, and the present gradient z."""
    if push == "guarded" and z @ across < 0:
        return 0.0
    lengths = {"paper": alpha / np.linalg.norm(across), "natural": 1 / np.linalg.norm(x)}
    return np.linalg.norm(z) * (min(lengths.values()) if push == "guarded" else lengths[push])


def test_a_refresh_part_of_ones_own_keeps_its_memory_and_its_correction():
    class Own(Combine):
        def ascended(self, t, clean, perturbed, memory):
            return Combined(perturbed, {"count": memory["count"] + 1}, correction={"p0": torch.ones(3)})

        def blank(self, params):
            return {"count": 0}

        def after_change(self, memory):
            return {"count": 10 * memory["count"]}

    part, g = Reuse(refresh=Own()), drawn([[3]], 0)
    out = ascended(part, g, drawn([[3]], 1), memory=part.blank(g))
    assert out.memory["count"] == 1 and out.correction["p0"].tolist() == [1.0, 1.0, 1.0]
    assert part.after_change(out.memory)["count"] == part.after_change({"count": 1})["count"] == 10


def test_the_guard_stops_a_push_that_the_fresh_gradient_objects_to():
    """Past the minimum of a steep direction g has turned and g_v has not: the other pushes go on, this one stops."""
    g, d = {"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([3.0, 1.5])}
    memory = ascended(Reuse(), g, d).memory  # g_v = (0, 1.5), half as long as g
    before, past = {"w": torch.tensor([2.0, 0.0])}, {"w": torch.tensor([2.0, -0.1])}
    assert Reuse().skipped(1, copies(before), memory)["w"].tolist() == [2.0, 1.0]
    assert Reuse(0.1).skipped(1, copies(before), memory)["w"].tolist() == pytest.approx([2.0, 0.2])
    assert torch.equal(Reuse().skipped(1, copies(past), memory)["w"], past["w"])
    for push in ("natural", "paper"):
        assert Reuse(push=push).skipped(1, copies(past), memory)["w"][1] > 0.8


@pytest.mark.parametrize("scale", [2.0**-12, 2.0**14])
def test_a_loss_scale_that_has_moved_since_the_refresh_changes_no_push(scale):
    g, d, later = (drawn([[5], [2, 2]], i) for i in range(3))
    for push in ("guarded", "natural", "paper"):
        part = Reuse(0.3, push)
        memory = ascended(part, g, d).memory
        scaled = ascended(part, {k: scale * v for k, v in g.items()}, {k: scale * v for k, v in d.items()}).memory
        near(part.skipped(1, copies(later), scaled), flat(part.skipped(1, copies(later), memory)))


@given(st.integers(0, 50), st.floats(0.1, 10))
@settings(max_examples=20)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_push_that_is_only_rounding_is_no_push(dtype, seed, factor):
    """g~ parallel to g, as on a bowl of equal curvature: alpha ||g|| along noise would be a random direction."""
    g = drawn([[50], [7, 7]], seed, dtype)
    d = {k: v * factor for k, v in g.items()}
    memory = ascended(Reuse(0.7), g, d).memory
    later = drawn([[50], [7, 7]], seed + 1, dtype)
    for push in ("paper", "guarded"):
        assert np.array_equal(flat(Reuse(0.7, push).skipped(1, copies(later), memory)), flat(later))
    natural = flat(Reuse(push="natural").skipped(1, copies(later), memory))
    assert np.linalg.norm(natural - flat(later)) <= 16 * torch.finfo(dtype).eps * factor * np.linalg.norm(flat(later))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_small_push_that_is_no_rounding_is_kept(dtype):
    g, d = drawn([[50]], 0, dtype), drawn([[50]], 0, dtype)
    d["p0"][0] += 1e-4
    memory = ascended(Reuse(0.7), g, d).memory
    out = flat(Reuse(0.7, "paper").skipped(1, copies(g), memory))
    assert np.linalg.norm(out - flat(g)) == pytest.approx(0.7 * np.linalg.norm(flat(g)), rel=1e-3)


@pytest.mark.parametrize("push", PUSHES)
def test_before_the_first_refresh_the_gradient_is_left_alone(push):
    g = drawn([[3]], 0)
    assert np.array_equal(flat(Reuse(0.7, push).skipped(0, copies(g), {})), flat(g))


def test_alpha_0_leaves_steps_between_refreshes_bit_for_bit():
    g, d = drawn([[9]], 0, torch.float32), drawn([[9]], 1, torch.float32)
    memory = ascended(Reuse(0.0), g, d).memory
    assert np.array_equal(flat(Reuse(0.0).skipped(1, copies(g), memory)), flat(g))
    natural, other = (flat(Reuse(alpha, "natural").skipped(1, copies(g), memory)) for alpha in (0.0, 0.7))
    assert np.array_equal(natural, other) and not np.array_equal(natural, flat(g)), "which takes no alpha"


def test_alpha_may_be_a_curve_of_the_step_that_reuses():
    g, d = drawn([[9]], 0), drawn([[9]], 1)
    part = Reuse(Linear(0.0, 1.0, 4), "paper")
    memory = ascended(part, g, d, t=0).memory
    lengths = [np.linalg.norm(flat(part.skipped(t, copies(g), memory)) - flat(g)) for t in range(5)]
    assert lengths == pytest.approx([np.linalg.norm(flat(g)) * t / 4 for t in range(5)], abs=1e-12)


@pytest.mark.parametrize("push", ["paper", "natural"])
def test_parameters_that_lose_or_gain_a_gradient_between_steps(push):
    """The push acts where there is a gradient now and was one then; the scale is of all gradients now."""
    g, d = drawn([[3], [4]], 0), drawn([[3], [4]], 1)
    part = Reuse(0.7, push)
    memory = ascended(part, g, d).memory
    later = {"p1": torch.ones(4, dtype=torch.float64), "p9": torch.ones(2, dtype=torch.float64)}
    out = part.skipped(1, copies(later), memory)
    x, y = flat(g), flat(d)
    across = y - (y @ x) / (x @ x) * x
    scale = 0.7 / np.linalg.norm(across) if push == "paper" else 1 / np.linalg.norm(x)
    assert list(out) == ["p1", "p9"]
    np.testing.assert_allclose(out["p1"].numpy(), 1 + scale * math.sqrt(6) * across[3:], rtol=1e-12)
    assert torch.equal(out["p9"], later["p9"])
    gone = {"p9": later["p9"].clone()}
    assert torch.equal(part.skipped(1, gone, memory)["p9"], later["p9"])
