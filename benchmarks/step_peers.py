"""Other people's sharpness-aware steps as contenders of the benchmark, used as their documentation says."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from steppe.bench.contender import LR, Contender, Loss
from steppe.bench.measure import Maker
from steppe.bench.subject import Problem

RHO, K = 0.05, 5
SGD = {"lr": LR, "momentum": 0.9}


def naive(problem: Problem) -> Contender:
    """SAM as one writes it down: a loop over the tensors, w + eps and w - eps."""
    loss, weights = Loss(problem), [p for p in problem.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, **SGD)

    def perturb() -> list[tuple[Tensor, Tensor]]:
        touched = [p for p in weights if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in touched]).norm()  # type: ignore[union-attr]
        moves = [(p, p.grad * (RHO / (norm + 1e-12))) for p in touched]  # type: ignore[operator]
        for p, eps in moves:
            p.add_(eps)
        return moves

    def step(batch: Any) -> None:
        loss(batch).backward()
        with torch.no_grad():
            moves = perturb()
        optimizer.zero_grad()
        loss(batch).backward()
        with torch.no_grad():
            for p, eps in moves:
                p.sub_(eps)
        optimizer.step()
        optimizer.zero_grad()

    return Contender("naive SAM loop", step, loss, lambda: True, share=1.0)


def documented(problem: Problem, name: str) -> Contender:
    """pytorch_optimizer's SAM, LookSAM or FriendlySAM: a pass by hand, then ``step(closure)``."""
    import pytorch_optimizer

    loss, more = Loss(problem), {"k": K} if name == "LookSAM" else {}
    weights = [p for p in problem.model.parameters() if p.requires_grad]
    optimizer: Any = getattr(pytorch_optimizer, name)(weights, torch.optim.SGD, rho=RHO, **more, **SGD)
    refreshes = name != "LookSAM"

    def closure(batch: Any) -> Tensor:
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        return value

    def step(batch: Any) -> None:
        nonlocal refreshes
        refreshes = name != "LookSAM" or optimizer.get_step() % K == 0
        closure(batch)
        optimizer.step(partial(closure, batch))
        optimizer.zero_grad()

    def place(wanted: bool) -> None:
        if name == "LookSAM":
            for group in optimizer.param_groups:
                group["looksam_step"] = 0 if wanted else 1

    label = f"pytorch_optimizer {name}" + (f" (k={K})" if name == "LookSAM" else "")
    return Contender(label, step, loss, lambda: refreshes, place, 1 / K if name == "LookSAM" else 1.0)


def documented_gsam(problem: Problem) -> Contender:
    """pytorch_optimizer's GSAM, which runs both passes itself; the closure stands for its ``set_closure``."""
    from pytorch_optimizer import GSAM, ProportionScheduler

    loss, weights = Loss(problem), [p for p in problem.model.parameters() if p.requires_grad]
    base = torch.optim.SGD(weights, **SGD)
    rates = torch.optim.lr_scheduler.ConstantLR(base, 1.0)
    radii = ProportionScheduler(rates, max_lr=LR, min_lr=LR, max_value=RHO, min_value=RHO)
    optimizer = GSAM(weights, base, problem.model, radii)

    def both(batch: Any) -> tuple[None, Tensor]:
        base.zero_grad()
        with torch.enable_grad():
            value = loss(batch)
            value.backward()
        return None, value.detach()

    def step(batch: Any) -> None:
        optimizer.step(partial(both, batch))
        base.zero_grad()

    return Contender("pytorch_optimizer GSAM", step, loss, lambda: True, share=1.0)


PEERS: dict[str, Maker] = {
    "peer_naive": naive,
    "peer_sam": partial(documented, name="SAM"),
    "peer_look_sam": partial(documented, name="LookSAM"),
    "peer_gsam": documented_gsam,
    "peer_fsam": partial(documented, name="FriendlySAM"),
}
"""Name in the JSON -> contender; each stands beside the method of steppe with the same ending."""


class NoStep(torch.optim.Optimizer):
    """A base optimizer that does nothing, so that a peer's restoring can be timed alone."""

    def __init__(self, params: Any, **_: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        return None
