"""A small model behind SharpOptimizer, the same in a plain loop, and what both do in a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tests.loops.shared import STEPS, Built, batch_of, build
from torch import Tensor, nn

from steppe.integrations.closure import SharpOptimizer

Closure = Callable[[], Tensor]


def loss_of(model: nn.Module, t: int) -> Tensor:
    x, y = batch_of(t)
    return nn.functional.cross_entropy(model(x), y)


def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> Closure:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, t)
        loss.backward()
        return loss

    return closure


def wrapped(name: str) -> tuple[nn.Module, SharpOptimizer]:
    model, _, sharp = build(name)
    return model, SharpOptimizer(sharp)


def plain(name: str, steps: int = STEPS) -> Built:
    model, optimizer, sharp = built = build(name)
    for t in range(steps):
        sharp.backward(lambda t=t: loss_of(model, t))
        optimizer.step()
        optimizer.zero_grad()
    return built
