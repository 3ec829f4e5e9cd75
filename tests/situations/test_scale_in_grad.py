"""perturbed() under a loss scale: whether .grad still carries it, only the loop knows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe

RHO, SIGMA, DECAY, SCALE = 0.2, 1.0, 0.9, 1024.0
X = torch.arange(24, dtype=torch.float64).sin().view(6, 4)


def loss_of(model: nn.Module) -> Tensor:
    return (model(X).square().sum(1) * torch.arange(1, 7)).mean()


def climbed(model: nn.Module, average: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """eps by hand, and the average that F-SAM then has."""
    g = list(torch.autograd.grad(loss_of(model), list(model.parameters())))
    average = [DECAY * m + (1 - DECAY) * x for m, x in zip(average, g, strict=True)]
    v = [x - SIGMA * m for x, m in zip(g, average, strict=True)]
    length = torch.cat([x.flatten() for x in v]).norm()
    return [RHO * x / length for x in v], average


@pytest.mark.parametrize("given", ["the scaler", "a number", "a tensor", "taken off"])
def test_fsam_climbs_as_by_hand(given: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sharp = steppe.FSAM(model, optimizer, rho=RHO, sigma=SIGMA, decay=DECAY)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    average = [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(4):
        average = climbed(model, average)[1]
        sharp.backward(lambda: loss_of(model), backward=lambda loss: scaler.scale(loss).backward())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    expected, _ = climbed(model, average)
    before = copy.deepcopy(model)
    scaler.scale(loss_of(model)).backward()
    tensor = torch.tensor(SCALE).double()
    scale: Any = {"the scaler": scaler, "a number": SCALE, "a tensor": tensor, "taken off": 1}[given]
    if given == "taken off":
        scaler.unscale_(optimizer)
    with sharp.perturbed(scale=scale):
        moved = [p.detach() - q for p, q in zip(model.parameters(), before.parameters(), strict=True)]
    for eps, wanted in zip(moved, expected, strict=True):
        torch.testing.assert_close(eps, wanted, rtol=1e-9, atol=1e-12)
    with pytest.raises(RuntimeError, match=r"loss scale of 1024.*perturbed\(scale=1\) after"), sharp.perturbed():
        pass


@pytest.mark.parametrize("method", [steppe.SAM, steppe.MSAM])
def test_who_does_not_read_it_needs_none(method: Any) -> None:
    model = nn.Linear(4, 2).double()
    sharp = method(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    sharp.backward(lambda: loss_of(model), backward=lambda loss: (loss * SCALE).backward())
    with sharp.perturbed():
        pass


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), True, "1024", None])
def test_what_is_no_scale_is_refused(scale: Any) -> None:
    model = nn.Linear(4, 2).double()
    sharp = steppe.FSAM(model, torch.optim.SGD(model.parameters(), lr=0.05))
    loss_of(model).backward()
    with pytest.raises(ValueError, match="expected the loss scale that .grad carries"):
        sharp.ascend(scale=scale)
