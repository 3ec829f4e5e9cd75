"""A loss that is NaN or inf, or has no finite Hessian: one sentence, or NaN in a record, and no traceback of others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe.diagnostics import curvature, lambda_max, m_sharpness

GOOD = [(torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2), torch.tensor([0, 1, 1, 0]))]
BAD = [(GOOD[0][0] * math.nan, GOOD[0][1])]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def test_a_loss_that_is_not_finite_is_said() -> None:
    model = net()

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    for look in (curvature, m_sharpness):
        with pytest.raises(ValueError, match=r"the loss at the model's weights is nan; expected a finite one"):
            look(model, loss_of, BAD)
    with pytest.raises(ValueError, match=r"is NaN or inf; expected .* finite weights and batches"):
        lambda_max(model, loss_of, BAD)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="NaN or inf on the batches that were looked at, at w or at rho = 0.1;"):
        steppe.find_rho(model, optimizer, loss_of, BAD, radii=(0.1, 0.2), trial=2)


def test_a_finite_loss_without_a_finite_hessian_is_said() -> None:
    model = net()
    with pytest.raises(ValueError, match="a product of the Hessian with a vector is NaN or inf"):
        lambda_max(model, lambda batch: model(batch[0] * 0 + 1).sub(model(batch[0] * 0 + 1)).abs().sum().sqrt(), GOOD)


def test_a_loss_that_overflows_far_away_has_no_error() -> None:
    model = nn.Linear(2, 1).double()
    near, far = m_sharpness(model, lambda b: model(b[0]).exp().mean(), GOOD, radii=(0.1, 1e4), m=None, draws=4).rises
    assert near.error is not None and math.isfinite(near.error)
    assert far.error is not None and math.isnan(far.error)


def test_a_training_that_diverges_goes_on_with_its_probe() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.SAM(model, optimizer)

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    probe = steppe.Probe(sharp, every=1, loss_of=loss_of, batches=GOOD)
    for batch in (GOOD[0], BAD[0], GOOD[0]):
        with probe:
            sharp.backward(loss_of, batch)
        optimizer.step()
        optimizer.zero_grad()
    ends = [record["lambda_max"] for record in probe.records]
    assert list(map(math.isnan, ends)) == [False, False, True]
