"""d from g and g~: closed forms on vectors of drawn shapes, reuse over steps, and who may be written on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steppe
from steppe.combine import PUSHES, Combine, Combined, Decoupled, Mix, Replace, Reuse, SurrogateGap
from steppe.curves import Linear, Quotient

SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=4)
EVERY = [Replace(), Mix(0.8), Mix(1.0), Mix(0.0), SurrogateGap(0.4), SurrogateGap(0.0), Reuse(), Decoupled(0.9)]


def drawn(shapes, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {f"p{i}": torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for i, s in enumerate(shapes)}


def flat(grads):
    return np.concatenate([v.double().numpy().ravel() for v in grads.values()]) if grads else np.zeros(0)


def copies(grads):
    return {k: v.clone() for k, v in grads.items()}


def ascended(part, g, d, t=0, memory=None):
    """The part may write on what it gets, so it gets copies."""
    return part.ascended(t, copies(g) if part.needs_clean(t) else {}, copies(d), memory or {})


def near(got, wanted, rtol=1e-12):
    np.testing.assert_allclose(flat(got) if isinstance(got, dict) else got, wanted, rtol=rtol, atol=1e-13)


# --- one step -----------------------------------------------------------------------------------------------


@given(SHAPES, st.integers(0, 50), st.floats(0, 5))
@settings(max_examples=20)
def test_mix(shapes, seed, gamma):
    g, d = drawn(shapes, seed), drawn(shapes, seed + 1)
    near(ascended(Mix(gamma), g, d).grads, (1 - gamma) * flat(g) + gamma * flat(d))


def test_mix_at_its_ends_is_bit_for_bit():
    g, d = drawn([[5], [2, 2]], 0, torch.float32), drawn([[5], [2, 2]], 1, torch.float32)
    assert np.array_equal(flat(ascended(Mix(1.0), g, d).grads), flat(d))
    assert np.array_equal(flat(ascended(Mix(0.0), g, d).grads), flat(g))
    assert np.array_equal(flat(ascended(Replace(), g, d).grads), flat(d))
    assert np.array_equal(flat(ascended(SurrogateGap(0.0), g, d).grads), flat(d))


def test_mix_reads_its_curve():
    g, d = {"a": torch.tensor([0.0])}, {"a": torch.tensor([1.0])}
    part = Mix(Quotient(1.0, Linear(0.0, 1.0, 4), 3.0))
    assert [float(ascended(part, g, d, t).grads["a"]) for t in range(5)] == pytest.approx([3, 3, 2, 4 / 3, 1])
    assert [part.needs_clean(t) for t in range(6)] == [True] * 4 + [False] * 2


@given(SHAPES, st.integers(0, 50), st.floats(0, 3))
@settings(max_examples=20)
def test_surrogate_gap(shapes, seed, alpha):
    g, d = drawn(shapes, seed), drawn(shapes, seed + 1)
    x, y = flat(g), flat(d)
    out = flat(ascended(SurrogateGap(alpha), g, d).grads)
    across = x - (x @ y) / (y @ y) * y
    near(out, y - alpha * across, rtol=1e-11)
    assert (out - y) @ y == pytest.approx(0, abs=1e-10), "what is taken away is orthogonal to the perturbed gradient"


@given(SHAPES, st.integers(0, 50), st.floats(0, 0.99))
@settings(max_examples=20)
def test_decoupled(shapes, seed, gamma):
    g, d = drawn(shapes, seed), drawn(shapes, seed + 1)
    out = ascended(Decoupled(gamma), g, d)
    assert np.array_equal(flat(out.grads), flat(g))
    near(out.correction, gamma / (1 - gamma) * (flat(d) - flat(g)), rtol=1e-11)
    assert out.memory == {}


def test_which_parts_need_the_clean_gradient():
    assert [p.needs_clean(0) for p in EVERY] == [False, True, False, True, True, False, True, True]
    assert [p.reuses for p in EVERY] == [isinstance(p, Reuse) for p in EVERY]


@pytest.mark.parametrize("part", EVERY, ids=repr)
def test_no_gradient_at_all(part):
    """A loss that reaches no parameter of the model has nothing to combine."""
    out = part.ascended(0, {}, {}, {})
    assert out.grads == {} and not out.correction
    assert part.skipped(1, {}, out.memory) == {}


@pytest.mark.parametrize("part", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zero_gradients_give_zero_and_no_nan(part, dtype):
    zero = {k: torch.zeros_like(v) for k, v in drawn([[3], [2]], 0, dtype).items()}
    out = ascended(part, zero, zero)
    assert not flat(out.grads).any()
    some = drawn([[3], [2]], 0, dtype)
    assert np.array_equal(flat(part.skipped(1, copies(some), out.memory)), flat(some))
    for g, d in ((zero, some), (some, zero)):
        assert np.isfinite(flat(ascended(part, g, d).grads)).all()


@pytest.mark.parametrize("part", EVERY, ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision_is_near_float64(part, dtype, tolerance):
    g, d = drawn([[40], [8, 8]], 0, dtype), drawn([[40], [8, 8]], 1, dtype)
    wide = [{k: v.double() for k, v in x.items()} for x in (g, d)]
    got, wanted = ascended(part, g, d), ascended(part, *wide)
    assert all(v.dtype == dtype for v in got.grads.values())
    error = np.linalg.norm(flat(got.grads) - flat(wanted.grads))
    assert error <= tolerance * np.linalg.norm(flat(wanted.grads))


@pytest.mark.parametrize("part", [SurrogateGap(0.4), Reuse()], ids=repr)
def test_inner_products_are_over_all_tensors(part):
    """With one tensor doubled in weight the others' result moves: the projection is not per tensor."""
    g, d = drawn([[3], [4]], 0), drawn([[3], [4]], 1)
    more = copies(d)
    more["p1"] *= 10
    one, other = ascended(part, g, d), ascended(part, g, more)
    pick = (lambda out: out.memory["g_v"]["p0"]) if isinstance(part, Reuse) else (lambda out: out.grads["p0"])
    assert not torch.allclose(pick(one), pick(other), rtol=1e-3)


# --- reuse --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("refresh", [Replace(), Mix(0.3), Mix(0.0), Mix(1.0), SurrogateGap(0.7), SurrogateGap(0.0)])
@pytest.mark.parametrize("push", PUSHES)
def test_memory_is_never_written_in_place(refresh, push):
    """A checkpoint holds the memory by reference, and the gradients handed on are clipped in place by users."""
    part, memory = Reuse(0.7, push, refresh), {}
    for t in range(6):
        kept = copies(memory.get("g_v", {}))
        tensors = dict(memory.get("g_v", {}))
        if t % 2 == 0:
            out = ascended(part, drawn([[3], [4]], t), drawn([[3], [4]], t + 50), t, memory)
            grads, new = out.grads, out.memory
            shared = {v.data_ptr() for v in grads.values()} & {v.data_ptr() for v in new["g_v"].values()}
            assert not shared
        else:
            grads, new = part.skipped(t, drawn([[3], [4]], t), memory), memory
        for v in grads.values():
            v.mul_(1e9)
        assert all(torch.equal(tensors[k], kept[k]) for k in kept)
        memory = new


def test_the_correction_shares_nothing_with_the_gradient_handed_on():
    out = ascended(Decoupled(0.5), drawn([[3]], 0), drawn([[3]], 1))
    assert out.grads["p0"].data_ptr() != out.correction["p0"].data_ptr()


@pytest.mark.parametrize("part", EVERY, ids=repr)
def test_the_names_and_their_order_are_kept(part):
    g = drawn([[1], [2], [3]], 0)
    assert list(ascended(part, g, drawn([[1], [2], [3]], 1)).grads) == list(g)


def test_combined_has_nothing_unless_told():
    assert Combined({}).memory == {} and Combined({}).correction is None


def wsam_step(sharp, x, how):
    model = sharp.model
    if how == "backward":
        return sharp.backward(lambda: model(x).square().sum())
    model(x).square().sum().backward()
    if sharp.ascend():
        model(x).square().sum().backward()
        sharp.restore()


@pytest.mark.parametrize("how", ["backward", "phases"])
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("abandoned", [[3.0, -1.0], [math.inf, 1.0]], ids=str)
def test_the_correction_of_an_abandoned_step_is_gone(how, to_none, abandoned):
    """As when GradScaler leaves a step out; its gradient may be inf."""
    weights = []
    for with_it in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sharp = steppe.WSAM(model, optimizer, rho=0.1)
        if with_it:
            wsam_step(sharp, torch.tensor([abandoned]), how)
            optimizer.zero_grad(set_to_none=to_none)
        wsam_step(sharp, torch.ones(1, 2), how)
        optimizer.step()
        weights.append(model.weight.tolist())
    assert weights[0] == weights[1]


def test_wsam_by_hand_with_two_learning_rates_and_two_backwards():
    """w <- w - lr_group (sum g_i + gamma / (1 - gamma) sum (g~_i - g_i)), each g~_i at w + eps of its own g_i."""
    gamma, rho, rates = 0.6, 0.3, {"a": 0.1, "b": 0.02}
    draw = torch.Generator().manual_seed(0)
    matrices = [torch.randn(5, 5, generator=draw, dtype=torch.float64) for _ in range(2)]
    start = torch.randn(5, generator=draw, dtype=torch.float64)
    model = torch.nn.ParameterDict({"a": start[:2].clone(), "b": start[2:].clone()})
    optimizer = torch.optim.SGD([{"params": [model[k]], "lr": lr} for k, lr in rates.items()])
    sharp = steppe.WSAM(model, optimizer, rho=rho, gamma=gamma)
    w = start.numpy().copy()
    for _ in range(3):
        g_sum, rise_sum = np.zeros(5), np.zeros(5)
        for matrix in matrices:
            sharp.backward(lambda m=matrix: (m @ torch.cat([model["a"], model["b"]])).square().sum() / 2)
            hessian = matrix.numpy().T @ matrix.numpy()
            g = hessian @ w
            g_sum, rise_sum = g_sum + g, rise_sum + hessian @ (w + rho * g / np.linalg.norm(g)) - g
        optimizer.step()
        optimizer.zero_grad()
        w = w - np.array([0.1, 0.1, 0.02, 0.02, 0.02]) * (g_sum + gamma / (1 - gamma) * rise_sum)
        np.testing.assert_allclose(flat({k: p.detach() for k, p in model.items()}), w, rtol=1e-12, atol=1e-12)


# --- refused ------------------------------------------------------------------------------------------------


REFUSED = {
    "mix below 0": lambda: Mix(-0.1),
    "mix nan": lambda: Mix(math.nan),
    "mix word": lambda: Mix("half"),
    "gap below 0": lambda: SurrogateGap(-1),
    "reuse below 0": lambda: Reuse(-0.7),
    "reuse push": lambda: Reuse(push="hard"),
    "reuse of reuse": lambda: Reuse(refresh=Reuse()),
    "reuse refresh": lambda: Reuse(refresh="replace"),
    "decoupled 1": lambda: Decoupled(1.0),
    "decoupled above 1": lambda: Decoupled(1.5),
    "decoupled below 0": lambda: Decoupled(-0.5),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    with pytest.raises((ValueError, TypeError), match="was given; expected") as caught:
        REFUSED[name]()
    assert "\n" not in str(caught.value)
