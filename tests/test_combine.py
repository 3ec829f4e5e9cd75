"""d from g and g~: closed forms on vectors of drawn shapes, WSAM's correction over steps, and who may be written on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steppe
from steppe.combine import PUSHES, Combined, Decoupled, Mix, Replace, Reuse, SurrogateGap
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


# --- memory, and who is written on --------------------------------------------------------------------------


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
