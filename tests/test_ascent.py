"""The perturbation eps = rho T^2 v / ||T v|| of every scope, metric and direction against numpy, tensor by tensor."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import steppe
from steppe.ascent import SCOPES, Adaptive, Ascent, Friendly, Gradient, Identity
from steppe.curves import FollowLR, Linear

NAMES = ["conv.weight", "conv.bias", "head.weight", "scale", "head.bias", "bias_table"]
SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=len(NAMES))
RADII = st.floats(1e-3, 2.0)


class Case:
    """Weights and gradients of drawn shapes, with a group and a radius for each."""

    def __init__(self, shapes, seed, dtype=torch.float64, radii=(0.3,)):
        generator = torch.Generator().manual_seed(seed)
        self.names = NAMES[: len(shapes)]
        self.w, self.g = (
            {
                k: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)
                for k, s in zip(self.names, shapes, strict=True)
            }
            for _ in range(2)
        )
        self.groups = {k: (i + seed) % len(radii) for i, k in enumerate(self.names)}
        self.rho = {k: radii[g] for k, g in self.groups.items()}

    def eps(self, ascent, memory=None):
        handed = {k: g.clone() for k, g in self.g.items()}
        out, _ = ascent.perturbation(self.w, handed, self.rho, self.groups, memory or {})
        assert list(out) == self.names
        return {k: e.double().numpy() for k, e in out.items()}

    def metric(self, eta):
        if eta is None:
            return {k: np.ones(w.shape) for k, w in self.w.items()}
        return {
            k: np.ones(w.shape) if k in ("conv.bias", "head.bias") else np.abs(w.double().numpy()) + eta
            for k, w in self.w.items()
        }


def length(arrays):
    return math.sqrt(sum(float((np.asarray(a) ** 2).sum()) for a in arrays))


def expected(case, scope, eta=None):
    """The formulas of the scopes, one tensor at a time."""
    t, g = case.metric(eta), {k: v.double().numpy() for k, v in case.g.items()}
    tg = {k: t[k] * g[k] for k in g}
    out = {}
    for k in case.names:
        size = length([case.w[k].double().numpy()])
        among = {
            "global": case.names,
            "paper": case.names,
            "tensor": [k],
            "trust": [k],
            "none": [],
            "group": [n for n in case.names if case.groups[n] == case.groups[k]],
        }[scope]
        norm, own = length([tg[n] for n in among]), length([tg[k]])
        factor = case.rho[k] / norm if norm else 0.0
        if scope == "none":
            factor = case.rho[k]
        if scope == "trust" and size:
            factor *= size
        if scope == "paper" and size:
            factor *= size / own if own else 0.0
        out[k] = factor * t[k] ** 2 * g[k]
    return out


def same(got, wanted, rtol=1e-12):
    for k in wanted:
        np.testing.assert_allclose(got[k], wanted[k], rtol=rtol, atol=1e-14, err_msg=k)


def metric_of(eta):
    return Identity() if eta is None else Adaptive(eta)


# --- closed forms -------------------------------------------------------------------------------------------


@given(SHAPES, st.integers(0, 50), RADII, st.sampled_from([None, 0.0, 0.01, 1.0]))
@settings(max_examples=20)
@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_and_metric(scope, shapes, seed, rho, eta):
    case = Case(shapes, seed, radii=(rho,))
    same(case.eps(Ascent(scope=scope, metric=metric_of(eta))), expected(case, scope, eta))


@given(SHAPES, st.integers(0, 50), st.lists(RADII | st.just(0.0), min_size=2, max_size=3))
@settings(max_examples=20)
@pytest.mark.parametrize("scope", SCOPES)
def test_radii_of_groups(scope, shapes, seed, radii):
    """With different radii the norm stays that of the scope: each tensor has its own group's share of it."""
    case = Case(shapes, seed, radii=radii)
    same(case.eps(Ascent(scope=scope, metric=Adaptive())), expected(case, scope, 0.01))


@given(SHAPES, st.integers(0, 50), RADII, st.floats(0, 1))
@settings(max_examples=20)
def test_radius_in_the_norm_of_the_metric(shapes, seed, rho, eta):
    case = Case(shapes, seed, radii=(rho,))
    eps, t = case.eps(Ascent(metric=Adaptive(eta))), case.metric(eta)
    assume(all((m > 0).all() for m in t.values()))
    assert length([eps[k] / t[k] for k in eps]) == pytest.approx(rho, rel=1e-12)


@given(SHAPES, st.integers(0, 50), st.lists(RADII, min_size=2, max_size=3))
@settings(max_examples=20)
def test_each_group_has_its_own_radius_in_scope_group(shapes, seed, radii):
    case = Case(shapes, seed, radii=radii)
    eps = case.eps(Ascent(scope="group"))
    for group in set(case.groups.values()):
        assert length([e for k, e in eps.items() if case.groups[k] == group]) == pytest.approx(radii[group], rel=1e-12)


def test_scopes_agree_on_one_tensor_of_length_one():
    case = Case([[3]], 0)
    case.w["conv.weight"] /= case.w["conv.weight"].norm()
    for scope in ("tensor", "group", "trust"):
        same(case.eps(Ascent(scope=scope)), case.eps(Ascent(scope="global")))
    case.g["conv.weight"] /= case.g["conv.weight"].norm()
    same(case.eps(Ascent(scope="paper")), case.eps(Ascent(scope="global")))


@given(SHAPES, st.integers(0, 50), st.floats(1e-6, 1e6))
@settings(max_examples=30)
@pytest.mark.parametrize("scope", ["global", "tensor", "group", "trust"])
def test_a_positive_factor_on_the_gradient_changes_nothing(scope, shapes, seed, factor):
    case = Case(shapes, seed)
    before = case.eps(Ascent(scope=scope, metric=Adaptive()))
    case.g = {k: g * factor for k, g in case.g.items()}
    same(case.eps(Ascent(scope=scope, metric=Adaptive())), before, rtol=1e-10)


# --- zeros and other edges ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("eta", [None, 0.0, 0.01])
def test_zero_weights_and_zero_gradients(scope, eta):
    case = Case([[2], [3], [2, 2], []], 1)
    case.w["conv.weight"].zero_()
    case.g["head.weight"].zero_()
    ascent = Ascent(scope=scope, metric=metric_of(eta))
    same(case.eps(ascent), expected(case, scope, eta))
    assert not case.eps(ascent)["head.weight"].any()
    moved = case.eps(ascent)["conv.weight"].any()
    assert moved == (eta != 0.0), "with eta = 0 a zero weight never moves, else it does"


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("metric", [Identity(), Adaptive(0.0), Adaptive()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_gradient_gives_zero(scope, metric, dtype):
    case = Case([[2], [3], []], 0, dtype)
    case.g = {k: torch.zeros_like(g) for k, g in case.g.items()}
    case.w["conv.weight"].zero_()
    assert all(not e.any() for e in case.eps(Ascent(scope=scope, metric=metric)).values())


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("metric", [Identity(), Adaptive()])
@pytest.mark.parametrize("direction", [Gradient(), Friendly()])
def test_nothing_to_perturb_gives_nothing(scope, metric, direction):
    """No perturbable parameter got a gradient in this pass."""
    eps, _ = Ascent(scope=scope, metric=metric, direction=direction).perturbation({}, {}, {}, {}, {})
    assert eps == {}


def test_an_unused_group_with_the_adaptive_metric_in_a_whole_step():
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 1), "unused": torch.nn.Linear(2, 1)})
    groups = [
        {"params": model["used"].parameters(), "perturb": False},
        {"params": model["unused"].parameters()},
    ]
    sharp = steppe.ASAM(model, torch.optim.SGD(groups, lr=0.1))
    sharp.backward(lambda: model["used"](torch.ones(1, 2)).sum())
    assert model["used"].weight.grad.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float32, 1e-5)])
def test_low_precision_is_near_the_formula(scope, dtype, tolerance):
    case = Case([[8], [3], [4, 4]], 3, dtype)
    got, wanted = case.eps(Ascent(scope=scope, metric=Adaptive())), expected(case, scope, 0.01)
    for k in wanted:
        assert length([got[k] - wanted[k]]) <= tolerance * length([wanted[k]])


def test_a_norm_beyond_fp16_still_gives_the_radius():
    """||g|| = 4e4 * 16 = 6.4e5 does not fit in fp16."""
    case = Case([[16, 16]], 0, torch.float16, radii=(0.5,))
    case.g["conv.weight"].fill_(4e4)
    assert length(case.eps(Ascent()).values()) == pytest.approx(0.5, rel=2e-3)


@pytest.mark.parametrize("scope", SCOPES)
def test_mixed_types(scope):
    case = Case([[3], [2], [2, 2]], 4)
    case.w["conv.bias"], case.g["conv.bias"] = case.w["conv.bias"].bfloat16(), case.g["conv.bias"].bfloat16()
    same(case.eps(Ascent(scope=scope)), expected(case, scope), rtol=2e-2)


def test_a_gradient_of_one_tiny_number_gives_a_finite_perturbation():
    case = Case([[]], 0, torch.float32)
    case.g["conv.weight"].fill_(1e-40)
    eps = case.eps(Ascent(scope="tensor"))["conv.weight"]
    assert np.isfinite(eps) and abs(eps) <= 0.3 * (1 + 1e-3)


# --- what is written and what is only read ------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("metric", [Identity(), Adaptive()])
@pytest.mark.parametrize("direction", [Gradient(), Friendly()])
def test_weights_are_read_and_gradients_are_reused(scope, metric, direction):
    case = Case([[2, 3], [3]], 0)
    weights = {k: w.clone() for k, w in case.w.items()}
    handed = {k: g.clone() for k, g in case.g.items()}
    out, _ = Ascent(scope=scope, metric=metric, direction=direction).perturbation(
        case.w, handed, case.rho, case.groups, {}
    )
    assert all(torch.equal(case.w[k], weights[k]) for k in weights)
    assert [out[k].data_ptr() for k in out] == [handed[k].data_ptr() for k in out], "no buffer of its own"


def test_the_metric_is_new_memory_and_biases_have_none():
    weights = {"a.weight": torch.tensor([-2.0, 0.0]), "a.bias": torch.tensor([5.0]), "bias.weight": torch.tensor([3.0])}
    t = Adaptive(0.5)(weights)
    assert [x.tolist() for x in t] == [[2.5, 0.5], [1.0], [3.5]]
    assert weights["a.weight"].tolist() == [-2.0, 0.0]
    assert Identity()(weights) is None


# --- friendly -----------------------------------------------------------------------------------------------


@given(SHAPES, st.floats(0, 2), st.floats(0, 1), st.integers(0, 20))
@settings(max_examples=30)
def test_friendly_against_a_loop_by_hand(shapes, sigma, decay, seed):
    direction, memory = Friendly(sigma, decay), {}
    mean = [np.zeros(s) for s in shapes]
    for step in range(4):
        case = Case(shapes, seed + step)
        g = [v.numpy().copy() for v in case.g.values()]
        mean = [decay * m + (1 - decay) * x for m, x in zip(mean, g, strict=True)]
        v, memory = direction(case.g, memory)
        for got, x, m in zip(v.values(), g, mean, strict=True):
            np.testing.assert_allclose(got.numpy(), x - sigma * m, rtol=1e-12, atol=1e-13)


def test_friendly_never_writes_on_its_memory():
    direction, memory = Friendly(), {}
    for step in range(4):
        kept = {k: v.clone() for k, v in memory.get("average", {}).items()}
        before, tensors = memory, dict(memory.get("average", {}))
        _, memory = direction(Case([[3], [2, 2]], step).g, memory)
        assert all(torch.equal(tensors[k], kept[k]) for k in kept)
        assert before is not memory
        old, new = ({v.data_ptr() for v in d.values()} for d in (tensors, memory["average"]))
        assert not old & new


def test_friendly_remembers_a_parameter_without_a_gradient_and_begins_a_new_one_at_zero():
    direction = Friendly(sigma=1.0, decay=0.5)
    _, memory = direction({"a": torch.tensor([2.0]), "b": torch.tensor([4.0])}, {})
    v, memory = direction({"b": torch.tensor([4.0]), "c": torch.tensor([8.0])}, memory)
    assert {k: x.tolist() for k, x in memory["average"].items()} == {"a": [1.0], "b": [3.0], "c": [4.0]}
    assert {k: x.tolist() for k, x in v.items()} == {"b": [1.0], "c": [4.0]}


def test_friendly_with_sigma_0_is_the_gradient_and_needs_no_memory():
    g = {"a": torch.tensor([2.0])}
    v, memory = Friendly(sigma=0.0)(g, {"average": {"a": torch.tensor([9.0])}})
    assert v is g and v["a"].tolist() == [2.0] and memory == {}


# --- radius -------------------------------------------------------------------------------------------------


def test_the_groups_own_radius_wins():
    for ascent in (Ascent(rho=0.1), Ascent(rho=lambda t: 0.1), Ascent(rho=FollowLR(0.1, 0.1, 1.0))):
        assert ascent.radius(3, {"rho": 0.7, "lr": 0.5}) == 0.7
        assert ascent.radius(3, {"rho": 0.0, "lr": 0.5}) == 0.0
        assert ascent.radius(3, {"rho": None, "lr": 0.5}) == 0.1
        assert ascent.radius(3, {"lr": 0.5}) == 0.1
        assert ascent.radius(3, None) == 0.1


def test_radius_of_curves():
    assert [Ascent(rho=Linear(0.0, 1.0, 4)).radius(t, None) for t in range(3)] == [0.0, 0.25, 0.5]
    assert Ascent(rho=FollowLR(0.4, 0.2, 1.0)).radius(0, {"lr": 0.5}) == pytest.approx(0.3)


REFUSED = {
    "rho below 0": {"rho": -0.1},
    "rho nan": {"rho": math.nan},
    "rho inf": {"rho": math.inf},
    "rho word": {"rho": "big"},
    "rho none": {"rho": None},
    "rho true": {"rho": True},
    "direction": {"direction": "gradient"},
    "direction class": {"direction": Friendly},
    "metric": {"metric": 0.01},
    "metric for direction": {"direction": Adaptive()},
    "scope": {"scope": "layer"},
    "subset": {"subset": "bias"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    with pytest.raises((ValueError, TypeError), match="was given; expected") as caught:
        Ascent(**REFUSED[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda: Adaptive(-1), lambda: Friendly(-1), lambda: Friendly(1.0, 1.1)])
def test_ranges_of_directions_and_metrics(make):
    with pytest.raises(ValueError, match="was given; expected"):
        make()
