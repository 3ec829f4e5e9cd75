"""What the tests of directions known before any pass share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.problems import BATCH, loss_of, make, net
from torch import Tensor, nn

import steppe
from steppe.ahead import Ahead

RHO = 0.3
DIRECTIONS: dict[str, Ahead] = {
    "momentum": steppe.Momentum(), "uphill": steppe.Momentum(sign=1), "average": steppe.Momentum(decay=0.8),
    "previous": steppe.Previous(),
}  # fmt: skip
each = pytest.mark.parametrize("name", DIRECTIONS)


def ahead(name: str, **settings: Any) -> steppe.Ascent:
    return steppe.Ascent(rho=RHO, direction=DIRECTIONS[name], **settings)


def known(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, last: dict[str, Tensor]) -> dict[str, Tensor]:
    """The direction by hand after one step, whose gradient was ``last``."""
    sign = -1 if name in ("momentum", "average") else 1
    if name in ("average", "previous"):
        return {n: sign * x for n, x in last.items()}
    return {n: sign * optimizer.state[p]["momentum_buffer"] for n, p in model.named_parameters() if n in last}


def begun(name: str, **parts: Any) -> tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware, dict[str, Tensor]]:
    """A model after its first real step, and the gradient of that step."""
    model = net(dropout=0)
    optimizer, sharp = make(model, ascent=ahead(name), **parts)
    sharp.backward(loss_of(model), BATCH)
    last = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer, sharp, last
