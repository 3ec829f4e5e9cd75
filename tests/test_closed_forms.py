"""What is known on paper: quadratics, the orthogonal push of LookSAM, and zero gradients."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from tests import reference
from tests.bowl import G_TILDE, LR, RHO, G, H, N, Tensors, W, bowl, bowl_loss, close

import steppe

ON_THE_BOWL = {
    "sam": (lambda m, o: steppe.SAM(m, o, rho=RHO), G + RHO * H @ G / N),
    "gnp": (lambda m, o: steppe.GNP(m, o, rho=RHO, gamma=0.8), G + 0.8 * RHO * H @ G / N),
    "mix 2": (lambda m, o: steppe.GNP(m, o, rho=RHO, gamma=2.0), G + 2 * RHO * H @ G / N),
    "gsam": (
        lambda m, o: steppe.GSAM(m, o, rho=RHO, alpha=0.4),
        G_TILDE - 0.4 * (G - (G @ G_TILDE) / (G_TILDE @ G_TILDE) * G_TILDE),
    ),
    "trust": (
        lambda m, o: steppe.LayerSAM(m, o, rho=RHO, layerwise="trust"),
        G + RHO * W.norm() * H @ G / N,
    ),
    "paper": (
        lambda m, o: steppe.LayerSAM(m, o, rho=RHO, layerwise="paper"),
        G + RHO * W.norm() / N * H @ G / N,
    ),
    "asam": (
        lambda m, o: steppe.ASAM(m, o, rho=RHO, eta=0.05),
        G + RHO * H @ ((W.abs() + 0.05) ** 2 * G) / ((W.abs() + 0.05) * G).norm(),
    ),
    "fsam": (
        lambda m, o: steppe.FSAM(m, o, rho=RHO, sigma=1.0, decay=0.9),  # g - m = 0.9 g at the first step
        G + RHO * H @ G / N,
    ),
}


@pytest.mark.parametrize("name", ON_THE_BOWL)
def test_gradient_on_a_quadratic(name):
    recipe, expected = ON_THE_BOWL[name]
    model, optimizer = bowl()
    recipe(model, optimizer).backward(bowl_loss(model))
    assert close(model.w.grad, expected)
    assert torch.equal(model.w.detach(), W)


def test_wsam_on_a_quadratic():
    """w - lr (Hw + gamma/(1-gamma) rho H^2 w / ||Hw||), the second part outside the base's own step."""
    model, optimizer = bowl()
    sharp = steppe.WSAM(model, optimizer, rho=RHO, gamma=0.75)
    sharp.backward(bowl_loss(model))
    assert close(model.w.grad, G)
    optimizer.step()
    assert close(model.w.detach(), W - LR * (G + 3 * RHO * H @ G / N))


def test_wsam_at_one_half_is_sam_on_plain_sgd():
    model, optimizer = bowl()
    other, plain = bowl()
    wsam, sam = steppe.WSAM(model, optimizer, rho=RHO, gamma=0.5), steppe.SAM(other, plain, rho=RHO)
    for _ in range(20):
        wsam.backward(bowl_loss(model))
        sam.backward(bowl_loss(other))
        optimizer.step(), plain.step()
        optimizer.zero_grad(), plain.zero_grad()
    assert close(model.w.detach(), other.w.detach(), 1e-13)


def test_sam_in_one_dimension_falls_on_the_known_line():
    """On h w^2/2 with w > 0: w_t = (1 - lr h)^t (w_0 + rho) - rho, because the step is -lr h (w + rho)."""
    model = Tensors(w=torch.tensor([2.0], dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.SAM(model, optimizer, rho=0.05)
    for t in range(1, 52):  # the line crosses zero at the 52nd step
        sharp.backward(lambda: 0.7 * model.w.square().sum() / 2)
        optimizer.step(), optimizer.zero_grad()
        assert math.isclose(model.w.item(), (1 - 0.07) ** t * 2.05 - 0.05, abs_tol=1e-14)
    assert 0 < model.w.item() < 0.005


def test_sam_in_one_dimension_ends_in_the_known_cycle():
    """w = +-c with c = lr h rho / (2 - lr h): c - lr h (c + rho) = -c."""
    h, rho, lr = 2.0, 0.3, 0.25
    c = lr * h * rho / (2 - lr * h)
    model = Tensors(w=torch.tensor([1.7], dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    sharp = steppe.SAM(model, optimizer, rho=rho)
    path = []
    for _ in range(100):
        sharp.backward(lambda: h * model.w.square().sum() / 2)
        optimizer.step(), optimizer.zero_grad()
        path.append(model.w.item())
    assert np.allclose(np.abs(path[-4:]), c, rtol=0, atol=1e-14)
    assert path[-1] * path[-2] < 0


def looking(scope="global", **options):
    problem = reference.MLP()
    model = problem.module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sharp = steppe.SharpnessAware(
        model,
        optimizer,
        ascent=steppe.Ascent(rho=0.1, scope=scope),
        schedule=steppe.Every(3),
        combine=steppe.Reuse(0.7, **options),
    )
    return problem, model, optimizer, sharp


def grads_of(model):
    return {k: p.grad.clone() for k, p in model.named_parameters()}


def clean_grads(problem, model, t):
    """The gradient by an ordinary backward, in float64; leaves .grad empty."""
    problem.torch_loss(model, problem.torch_batch(t)).backward()
    grads = grads_of(model)
    model.zero_grad()
    return grads


def inner(a, b):
    return float(sum((a[k] * b[k]).sum() for k in a))


def stored_push(sharp, model):
    """The gradient-shaped memory of a LookSAM object, by parameter name, wherever in the state it lies."""
    names = {k for k, _ in model.named_parameters()}

    def found(tree):
        if isinstance(tree, dict):
            if set(tree) == names and all(torch.is_tensor(v) for v in tree.values()):
                yield tree
            for value in tree.values():
                yield from found(value)

    (push,) = found(sharp.state_dict())
    return push


@pytest.mark.parametrize("scope", ["global", "trust", "paper", "tensor"])
def test_the_stored_push_is_orthogonal_to_the_gradient(scope):
    problem, model, optimizer, sharp = looking(scope)
    for t in range(9):
        g = clean_grads(problem, model, t)
        sharp.backward(lambda t=t: problem.torch_loss(model, problem.torch_batch(t)))
        d = grads_of(model)
        optimizer.step()
        optimizer.zero_grad()
        if t % 3 == 0:
            g_v = stored_push(sharp, model)
            length = math.sqrt(inner(g, g) * inner(g_v, g_v))
            assert length > 0
            assert abs(inner(g_v, g)) <= 1e-13 * math.sqrt(inner(g, g) * inner(d, d))
            # global, not per tensor: some tensor by itself is far from orthogonal
            assert max(abs(float((g_v[k] * g[k]).sum())) for k in g) > 1e-4 * length
            # and g~ - g_v lies along g
            rest = {k: d[k] - g_v[k] for k in d}
            assert math.isclose(inner(rest, g) ** 2, inner(rest, rest) * inner(g, g), rel_tol=1e-12)


def test_the_reused_push_has_length_alpha_times_the_gradient():
    problem, model, optimizer, sharp = looking(push="paper")
    for t in range(6):
        g = clean_grads(problem, model, t)
        sharp.backward(lambda t=t: problem.torch_loss(model, problem.torch_batch(t)))
        if t % 3:
            push = {k: v - g[k] for k, v in grads_of(model).items()}
            assert math.isclose(inner(push, push), 0.49 * inner(g, g), rel_tol=1e-12)
        optimizer.step()
        optimizer.zero_grad()


def test_a_stale_push_runs_past_the_bottom_of_a_steep_direction_and_the_guard_stops_it():
    """One steep direction beside a long flat gradient: s = rho h / ||g|| is about 2, where step size times h is 0.4.

    SAM contracts the steep coordinate by |1 - 0.4 (1 + s)|; a push that is kept for k - 1 steps runs towards -s w.
    """
    curvature = torch.tensor([20.0, 1.0], dtype=torch.float64)
    steep = {}
    for push in ("sam", "guarded", "natural", "paper"):
        model = Tensors(w=torch.tensor([0.01, 100.0], dtype=torch.float64))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        look = partial(steppe.LookSAM, k=5, push=push)
        sharp = (steppe.SAM if push == "sam" else look)(model, optimizer, rho=10.0)
        for _ in range(25):
            sharp.backward(lambda w=model.w: (curvature * w.square()).sum() / 2)
            optimizer.step(), optimizer.zero_grad()
        steep[push] = abs(float(model.w[0].detach()))
    assert steep["sam"] < 1e-3 and steep["guarded"] < 0.01
    assert steep["natural"] > 0.05 and steep["paper"] > 1


def test_look_sam_on_a_bowl_of_equal_curvature_has_nothing_to_reuse():
    """With H = h I the correction is parallel to g: g_v is exactly 0 here, and d stays finite."""
    model = Tensors(w=torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sharp = steppe.LookSAM(model, optimizer, rho=5.0, k=2, push="paper")
    for _ in range(2):
        sharp.backward(lambda: model.w.square().sum() / 2)
        d = model.w.grad.clone()
        optimizer.step(), optimizer.zero_grad()
    assert torch.equal(d, torch.tensor([3.0, 4.0], dtype=torch.float64))


FLAT = {
    "sam": lambda m, o: steppe.SAM(m, o, rho=RHO),
    "asam": lambda m, o: steppe.ASAM(m, o, rho=RHO),
    "trust": lambda m, o: steppe.LayerSAM(m, o, rho=RHO, layerwise="trust"),
    "paper": lambda m, o: steppe.LayerSAM(m, o, rho=RHO, layerwise="paper"),
    "gsam": lambda m, o: steppe.GSAM(m, o, rho=RHO),
    "fsam": lambda m, o: steppe.FSAM(m, o, rho=RHO),
    "gnp": lambda m, o: steppe.GNP(m, o, rho=RHO),
    "grst": lambda m, o: steppe.GRST(m, o, rho=RHO, p=1.0, total_steps=9),
    "look": lambda m, o: steppe.LookSAM(m, o, rho=RHO, k=2),
    "natural": lambda m, o: steppe.LookSAM(m, o, rho=RHO, k=2, push="natural"),
    "paper's push": lambda m, o: steppe.LookSAM(m, o, rho=RHO, k=2, push="paper"),
    "look layer": lambda m, o: steppe.LookLayerSAM(m, o, rho=RHO, k=2),
    "wsam": lambda m, o: steppe.WSAM(m, o, rho=RHO),
    "aesam": lambda m, o: steppe.AESAM(m, o, rho=RHO, total_steps=9),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize("name", FLAT)
def test_a_zero_gradient_gives_no_perturbation_and_no_nan(name, start, dtype):
    model = Tensors(w=torch.full((3,), start, dtype=dtype), bias=torch.zeros(2, dtype=dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sharp = FLAT[name](model, optimizer)
    seen = []

    def loss():
        seen.append(model.w.detach().clone())
        return (0.0 * model.w).sum() + (0.0 * model.bias).sum()

    for _ in range(5):
        sharp.backward(loss)
        assert not model.w.grad.any() and not model.bias.grad.any()
        optimizer.step()
        optimizer.zero_grad()
    assert len(seen) >= 5
    assert all(torch.equal(w, torch.full((3,), start, dtype=dtype)) for w in seen)


def test_look_sam_recovers_after_a_zero_gradient_at_the_refresh():
    """g = 0 at a refresh leaves nothing to reuse: the steps after it are those of the base, not NaN."""
    model, optimizer = bowl()
    for push in ("guarded", "natural", "paper"):
        sharp = steppe.LookSAM(model, optimizer, rho=RHO, k=3, push=push)
        sharp.backward(lambda: (0.0 * model.w).sum())
        optimizer.step(), optimizer.zero_grad()
        w = model.w.detach().clone()
        sharp.backward(bowl_loss(model))
        assert close(model.w.grad, H @ w)
        optimizer.zero_grad()
