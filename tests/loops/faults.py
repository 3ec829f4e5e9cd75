"""A training that a fault may meet, for each mechanism, and what of it must be as before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from tests import problems
from tests.loops.shared import recipe_of
from tests.problems import batches, everything, net
from torch import Tensor, nn

import steppe

F32 = torch.float32
BATCHES = list(batches(8, F32))
Built = tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]


def build(name: str, model: nn.Module | None = None, lr: float = 0.02) -> Built:
    model = net(F32) if model is None else model
    kind = steppe.optim.AMSGrad if name == "adasam" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=lr, **({} if name == "adasam" else {"momentum": 0.9}))
    method, settings = recipe_of(name)
    return model, optimizer, steppe.methods.get(method).recipe(model, optimizer, **settings)


def loss_of(name: str, model: nn.Module) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    return problems.losses_of(model) if name == "hardest samples" else problems.loss_of(model)


def advance(name: str, built: Built, start: int, stop: int) -> None:
    model, optimizer, sharp = built
    for t in range(start, stop):
        torch.manual_seed(t)
        sharp.backward(loss_of(name, model), BATCHES[t])
        optimizer.step()
        optimizer.zero_grad()


def outcome(built: Built) -> dict[str, Any]:
    parts = {"model": everything(built[0]), "optimizer": built[1].state_dict(), "sharp": built[2].state_dict()}
    return copy.deepcopy(parts)


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


class Overflow:
    """Makes the loss infinite in the passes named, counted from 1."""

    def __init__(self, *passes: int) -> None:
        self.passes, self.seen = passes, list[bool]()

    @property
    def hit(self) -> bool:
        """Whether any was."""
        return any(self.seen)

    def __call__(self, loss: Tensor) -> Tensor:
        self.seen.append(len(self.seen) + 1 in self.passes)
        return loss * float("inf") if self.seen[-1] else loss
