"""A loss with a centre that moves, and SAM's step by hand beside it."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn

import steppe

STEPS, RHO = 5, 0.3
Batch = tuple[Tensor, Tensor]


class Centred:
    """A loss of outputs less a centre, which moves with what it has seen."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.state: Any = self.begun()

    def begun(self) -> Any:
        return torch.zeros(3, dtype=torch.float64)

    def loss(self, batch: Batch) -> Tensor:
        out = self.model(batch[0])
        return nn.functional.cross_entropy(out - self.centre(out.detach()), batch[1])

    def centre(self, out: Tensor) -> Any:
        raise NotImplementedError


def batches() -> list[Batch]:
    draws = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 5, dtype=torch.float64, generator=draws), torch.randint(3, (8,), generator=draws))
        for _ in range(STEPS)
    ]


def by_hand(world: Centred, batch: Batch) -> Tensor:
    """A step of SAM whose second pass runs in a copy of the world as it was before the first."""
    drawn, there = random.getstate(), copy.deepcopy(world)
    loss, params = world.loss(batch), list(world.model.parameters())
    grads = torch.autograd.grad(loss, params)
    length = torch.cat([g.flatten() for g in grads]).norm()
    with torch.no_grad():
        for p, g in zip(there.model.parameters(), grads, strict=True):
            p += RHO * g / length
    after = random.getstate()
    random.setstate(drawn)
    there.loss(batch).backward()
    random.setstate(after)
    for p, q in zip(params, there.model.parameters(), strict=True):
        p.grad = q.grad
    return loss.detach()


def compare(kind: type[Centred]) -> None:
    """Some steps of both."""
    ours, hand = kind(), kind()
    sharp = steppe.SAM(ours.model, ours.optimizer, rho=RHO)
    for batch in batches():
        random.seed(0)
        found = sharp.backward(ours.loss, batch)
        random.seed(0)
        torch.testing.assert_close(found, by_hand(hand, batch), rtol=0, atol=1e-12)
        for world in (ours, hand):
            world.optimizer.step()
            world.optimizer.zero_grad()
    for p, q in zip(ours.model.parameters(), hand.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
