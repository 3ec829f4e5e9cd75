"""||eps|| = rho in the metric and scope that were asked for, for drawn shapes, weights and gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import reference
from tests.bowl import Tensors, close

import steppe

numbers = st.floats(-4, 4, allow_nan=False, width=64).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
shapes = st.lists(st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4)


@st.composite
def weights_and_grads(draw):
    """Named tensors of drawn shapes with drawn weights and gradients; one of them is a bias."""
    names = {}
    for i, shape in enumerate(draw(shapes)):
        size = math.prod(shape)
        values = [
            torch.tensor(draw(st.lists(numbers, min_size=size, max_size=size)), dtype=torch.float64) for _ in range(2)
        ]
        names["bias" if i == 1 else f"w{i}"] = tuple(v.reshape(shape) for v in values)
    return names


def displacement(drawn, ascent):
    """w + eps - w inside perturbed(), with the drawn gradients in .grad."""
    model = Tensors(**{k: w for k, (w, _) in drawn.items()})
    sharp = steppe.SharpnessAware(model, torch.optim.SGD(model.parameters(), lr=0.1), ascent=ascent)
    for k, p in model.named_parameters():
        p.grad = drawn[k][1].clone()
    with sharp.perturbed():
        eps = {k: p.detach() - drawn[k][0] for k, p in model.named_parameters()}
    assert all(torch.equal(p.detach(), drawn[k][0]) for k, p in model.named_parameters())
    assert all(torch.equal(p.grad, drawn[k][1]) for k, p in model.named_parameters())
    return eps


def length(tensors):
    return math.sqrt(sum(float(v.square().sum()) for v in tensors))


def along(eps, g):
    """eps points exactly where g does."""
    return close(eps * g.norm(), g * eps.norm(), 1e-12)


@given(weights_and_grads(), st.sampled_from([0.01, 0.05, 0.7, 3.0]))
@settings(max_examples=25)
def test_radius_of_sam(drawn, rho):
    eps = displacement(drawn, steppe.Ascent(rho=rho))
    if length(g for _, g in drawn.values()) == 0:
        assert all(not v.any() for v in eps.values())
    else:
        assert math.isclose(length(eps.values()), rho, abs_tol=1e-13)


@given(weights_and_grads(), st.sampled_from([0.05, 0.7, 3.0]), st.sampled_from([0.01, 0.5]))
@settings(max_examples=25)
def test_radius_of_asam_in_its_metric(drawn, rho, eta):
    eps = displacement(drawn, steppe.Ascent(rho=rho, metric=steppe.Adaptive(eta=eta)))
    scale = {k: torch.ones_like(w) if k == "bias" else w.abs() + eta for k, (w, _) in drawn.items()}
    if length(g for _, g in drawn.values()) == 0:
        assert all(not v.any() for v in eps.values())
        return
    assert math.isclose(length(eps[k] / scale[k] for k in eps), rho, abs_tol=1e-10)
    # the ascent is the steepest in that metric: no direction of the same length gains more
    gain = sum(float((eps[k] * g).sum()) for k, (_, g) in drawn.items())
    assert math.isclose(gain, rho * length(scale[k] * g for k, (_, g) in drawn.items()), rel_tol=1e-10)


@given(weights_and_grads(), st.sampled_from([0.05, 0.3]))
@settings(max_examples=25)
def test_radius_of_each_tensor_with_trust(drawn, rho):
    eps = displacement(drawn, steppe.Ascent(rho=rho, scope="trust"))
    for k, (w, g) in drawn.items():
        expected = 0.0 if not g.any() else rho * (float(w.norm()) if w.any() else 1.0)
        assert math.isclose(float(eps[k].norm()), expected, abs_tol=1e-13)
        assert along(eps[k], g)


@given(weights_and_grads(), st.sampled_from([0.05, 0.3]), st.sampled_from([0.01, 0.5]))
@settings(max_examples=20)
def test_radius_of_each_tensor_with_trust_and_a_metric(drawn, rho, eta):
    eps = displacement(drawn, steppe.Ascent(rho=rho, scope="trust", metric=steppe.Adaptive(eta=eta)))
    for k, (w, g) in drawn.items():
        scale = torch.ones_like(w) if k == "bias" else w.abs() + eta
        expected = 0.0 if not g.any() else rho * (float(w.norm()) if w.any() else 1.0)
        assert math.isclose(float((eps[k] / scale).norm()), expected, abs_tol=1e-10)


@given(weights_and_grads(), st.sampled_from([0.05, 0.3]))
@settings(max_examples=20)
def test_radius_of_each_tensor_as_the_paper_has_it(drawn, rho):
    """||eps_l|| = rho ||w_l|| / ||g||, and rho ||g_l|| / ||g|| for a tensor of zeros."""
    eps = displacement(drawn, steppe.Ascent(rho=rho, scope="paper"))
    whole = length(g for _, g in drawn.values())
    for k, (w, g) in drawn.items():
        factor = float(w.norm()) if w.any() else float(g.norm())
        expected = 0.0 if not g.any() else rho * factor / whole
        assert math.isclose(float(eps[k].norm()), expected, abs_tol=1e-12, rel_tol=1e-12)
        assert along(eps[k], g)


@given(weights_and_grads(), st.sampled_from([0.05, 0.3]))
@settings(max_examples=20)
def test_radius_of_each_tensor_with_scope_tensor(drawn, rho):
    eps = displacement(drawn, steppe.Ascent(rho=rho, scope="tensor"))
    for k, (_, g) in drawn.items():
        assert math.isclose(float(eps[k].norm()), rho if g.any() else 0.0, abs_tol=1e-13)
        assert along(eps[k], g)


@pytest.mark.parametrize("scope", ["global", "tensor", "group", "trust"])
@pytest.mark.parametrize("metric", [steppe.Identity(), steppe.Adaptive(eta=0.01)], ids=["identity", "adaptive"])
def test_a_loss_scale_changes_nothing_in_the_perturbation(scope, metric):
    """Multiplying by 2^20 is exact, so the scaled gradient must be bit for bit 2^20 times the plain one."""
    problem, scale = reference.MLP(), 2.0**20
    results = []
    for factor in (1.0, scale):
        model = problem.module()
        sharp = steppe.SharpnessAware(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            ascent=steppe.Ascent(rho=0.2, scope=scope, metric=metric),
        )
        sharp.backward(
            lambda m=model: problem.torch_loss(m, problem.torch_batch(0)),
            backward=lambda loss, f=factor: (f * loss).backward(),
        )
        results.append({k: p.grad / factor for k, p in model.named_parameters()})
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
