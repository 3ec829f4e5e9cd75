"""Losses that take derivatives of their own (a differential equation, a gradient penalty) are looked at as any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe import diagnostics

POINTS = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def residuals(model: nn.Module, x: Tensor) -> Tensor:
    """Of u' = -u."""
    x = x.detach().requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return (slope + u).square()[:, 0]


def test_curvature_is_that_of_the_dense_hessian() -> None:
    model = network()
    weights = list(model.parameters())
    grads = torch.cat([g.flatten() for g in _grads(residuals(model, POINTS).mean(), weights)])
    rows = [torch.cat([h.flatten() for h in _grads(g, weights)]) for g in grads]
    values = torch.linalg.eigvalsh(torch.stack(rows))
    found = diagnostics.curvature(model, lambda x: residuals(model, x).mean(), [POINTS], probes=len(values), runs=0)
    torch.testing.assert_close(found.lambda_max.value, float(values[-1]), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.lambda_min.value, float(values[0]), rtol=1e-10, atol=0)
    assert found.trace is not None
    torch.testing.assert_close(found.trace.value, float(values.sum()), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.loss, float(residuals(model, POINTS).mean()), rtol=1e-12, atol=0)


def _grads(of: Tensor, weights: list[Any]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(of, weights, create_graph=True, materialize_grads=True, allow_unused=True)


def test_rises_and_planes() -> None:
    model = network()
    loss_of = lambda x: residuals(model, x).mean()  # noqa: E731
    rise = diagnostics.m_sharpness(model, loss_of, [POINTS], [0.1], draws=1)
    plane = diagnostics.loss_plane(model, loss_of, [POINTS], points=3)
    here = loss_of(POINTS)
    grads = torch.autograd.grad(here, list(model.parameters()))
    length = torch.sqrt(sum(g.square().sum() for g in grads))
    with torch.no_grad():
        for weight, g in zip(model.parameters(), grads, strict=True):
            weight += 0.1 * g / length
    torch.testing.assert_close(rise.rises[0].worst, float(loss_of(POINTS) - here), rtol=1e-10, atol=0)
    torch.testing.assert_close(plane.points[0].loss, float(here), rtol=1e-12, atol=0)


def test_a_radius_is_found() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found = steppe.find_rho(model, optimizer, lambda x: residuals(model, x).mean(), [POINTS] * 2, trial=20)
    assert found.rho > 0 and len(found.trials) > 0


@pytest.mark.parametrize("recipe", [steppe.ESAM, steppe.KSAM])
def test_samples_cannot_be_chosen_by_such_a_loss(recipe: Any) -> None:
    model = network()
    sharp = recipe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"derivative of its own; expected one that takes none \(no autograd.grad\)"):
        sharp.backward(lambda x: residuals(model, x), POINTS)
    assert all(map(torch.equal, model.parameters(), before))
