"""Optimizers as people wrap them, in the shape of their libraries, and the same loop with gradients written by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tests import reference
from tests.reference.trajectory import Step
from tests.trajectory_cases import CASES, Case
from torch import Tensor, nn
from torch.optim import Optimizer

import steppe
from steppe.methods import METHODS

STEPS = 8  # two refreshes of LookSAM, two slow steps of a lookahead of 3 and of 4
# One method for each way to make a step: replaced, mixed, reused, pulled, added behind it, a remembered direction, by
# statistic, ahead of the pass by the optimizer's momentum and by its own gradient, by samples, by selected tensors.
MECHANISMS = ("sam", "grst", "look_sam", "gsam", "wsam", "fsam", "aesam", "msam", "s2_sam", "esam", "sl_sam")
BASES = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "amsgrad": steppe.optim.AMSGrad}


class Lookahead(Optimizer):
    """timm's Lookahead and its many copies: Optimizer.__init__ is never called, the slow step follows the fast one."""

    def __init__(self, optimizer: Optimizer, k: int = 3, alpha: float = 0.5) -> None:
        self.optimizer, self.k, self.alpha, self.count = optimizer, k, alpha, 0
        self.param_groups, self.defaults = optimizer.param_groups, optimizer.defaults
        self.state: Any = defaultdict(dict)
        self.slow = {p: p.detach().clone() for g in self.param_groups for p in g["params"]}

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            for p, slow in self.slow.items():
                slow.lerp_(p, self.alpha)
                p.copy_(slow)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.optimizer.state_dict(), "slow": list(self.slow.values()), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["inner"])
        self.count = state["count"]
        for mine, theirs in zip(self.slow.values(), state["slow"], strict=True):
            mine.copy_(theirs)


class Twice(torch.optim.SGD):
    """A subclass whose step calls its parent's: torch runs the step hooks of both."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Chained(Optimizer):
    """Several optimizers in one object, without a step of its own that could be heard."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = list(optimizers)
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [g for o in self.optimizers for g in o.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for o in self.optimizers:
            o.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        for o in self.optimizers:
            o.step()

    def state_dict(self) -> dict[str, Any]:
        return {"all": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for o, saved in zip(self.optimizers, state["all"], strict=True):
            o.load_state_dict(saved)


def cases(*skipped: str) -> list[Case]:
    """One case for every method: the first that is on the MLP."""
    found: dict[str, Case] = {}
    for case in CASES:
        if case.problem == "MLP" and case.method not in skipped:
            found.setdefault(case.method, case)
    return list(found.values())


def mechanisms(*names: str) -> list[Case]:
    """One case for every way to make a step, or for those that are named."""
    return [case for case in cases() if case.method in (names or MECHANISMS)]


def torch_base(case: Case, params: Any, **more: Any) -> Optimizer:
    return BASES[case.base[0]](params, **case.base[1], **more)


def backward(sharp: Any, case: Case, model: nn.Module, t: int, sign: float = 1.0) -> Tensor:
    """One call in the way that the method wants it."""
    reduction = "none" if METHODS[case.method].per_sample else "mean"

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        return sign * nn.functional.cross_entropy(model(batch[0]), batch[1], reduction=reduction)

    return sharp.backward(loss_of, reference.MLP().torch_batch(t))


def recipe(case: Case, model: nn.Module, optimizer: Any) -> Any:
    return METHODS[case.method].recipe(model, optimizer, **case.settings)


def by_hand(case: Case, model: nn.Module, step: Callable[[], None], real: Sequence[Optimizer]) -> None:
    """Gradients from the slow reference, steps from ``step``; ``real`` are the optimizers that step in the end.

    What a method adds after the step (WSAM) is added when a real step has been done, what it remembers of the gradient
    that a step was handed (S2-SAM) is taken when the real step begins, and momentum (MSAM) is the real one's.
    """
    names = {p: n for n, p in model.named_parameters()}
    memory: dict[str, Any] = {"base": {}}
    problem = reference.MLP()

    def before(optimizer: Optimizer, *_: Any) -> None:
        if case.method == "s2_sam":
            mine = [p for g in optimizer.param_groups for p in g["params"]]
            memory["d"] |= {names[p]: p.grad.numpy().copy() for p in mine}

    @torch.no_grad()
    def after(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if "after" in memory:
                    p.add_(torch.from_numpy(memory["after"][names[p]]), alpha=group["lr"])
                for name in ("momentum_buffer", "exp_avg"):
                    if name in optimizer.state.get(p, {}):
                        value = optimizer.state[p][name].numpy().copy()
                        memory["base"].setdefault("buffer", {})[names[p]] = value

    for optimizer in real:
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
    for t in range(STEPS):
        w = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
        d = reference.METHODS[case.method](Step(problem, t), w, t, memory, **case.settings)
        for p, n in names.items():
            p.grad = torch.from_numpy(np.array(d[n])) if n in d else None
        step()
        memory.pop("after", None)
        model.zero_grad()


def gap(one: nn.Module, other: nn.Module) -> float:
    """Largest difference of any weight."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)
