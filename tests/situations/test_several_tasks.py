"""One ``backward`` for each task, and heads that only one reaches: what is remembered of a head is of that one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import steppe

RHO, LR, DECAY, STEPS = 0.3, 0.1, 0.8, 4


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"trunk": nn.Linear(3, 4), "a": nn.Linear(4, 2), "b": nn.Linear(4, 2)}).double()


def task(model: nn.ModuleDict, head: str, x: Tensor) -> Tensor:
    return (model[head](torch.tanh(model["trunk"](x))) - (1 if head == "a" else -1)).square().mean()


def batches() -> Tensor:
    return torch.randn(STEPS, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradient(model: nn.ModuleDict, head: str, x: Tensor) -> dict[str, Tensor]:
    params = {n: p for n, p in model.named_parameters() if n.startswith(("trunk", head))}
    return dict(zip(params, torch.autograd.grad(task(model, head, x), list(params.values())), strict=True))


def by_hand(model: nn.ModuleDict) -> None:
    """F-SAM on each task by itself; of the trunk the second task's average is kept, as of accumulation."""
    params, average = dict(model.named_parameters()), dict[str, Any]()
    for x in batches():
        total, new = dict[str, Any](), dict(average)
        for head in ("a", "b"):
            g = gradient(model, head, x)
            fresh = {n: DECAY * average.get(n, 0.0) + (1 - DECAY) * v for n, v in g.items()}
            along = {n: v - fresh[n] for n, v in g.items()}
            length = torch.cat([v.flatten() for v in along.values()]).norm()
            before = {n: params[n].detach().clone() for n in g}
            with torch.no_grad():
                for n, v in along.items():
                    params[n] += RHO * v / length
            for n, v in gradient(model, head, x).items():
                total[n] = total.get(n, 0.0) + v
            with torch.no_grad():
                for n, w in before.items():
                    params[n].copy_(w)
            new |= fresh
        average = new
        with torch.no_grad():
            for n, v in total.items():
                params[n] -= LR * v


def test_friendly_remembers_what_each_head_was_given() -> None:
    model, hand = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    sharp = steppe.FSAM(model, optimizer, rho=RHO, decay=DECAY)
    for x in batches():
        for head in ("a", "b"):
            sharp.backward(lambda head=head, x=x: task(model, head, x))
        optimizer.step()
        optimizer.zero_grad()
    by_hand(hand)
    for mine, other in zip(model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
