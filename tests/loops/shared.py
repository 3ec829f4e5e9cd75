"""What the tests of the loops share: the methods of the README's table, the loop by hand, and the table's record."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from tests import reference
from torch import Tensor, nn

import steppe

LOOP_METHODS = ("sam", "asam", "grst", "look_sam", "gsam", "adasam")
STEPS = 10
# Every branch within ten steps: both draws of G-RST (seed 3), three refreshes of LookSAM.
SETTINGS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.1},
    "asam": {"rho": 0.5},
    "grst": {"rho": 0.1, "total_steps": STEPS, "seed": 3},
    "look_sam": {"rho": 0.1, "k": 4, "alpha": 0.4},
    "gsam": {"rho": 0.1, "alpha": 0.4},
    "adasam": {"rho": 0.05},
}
# The others, for what must hold beyond the table.
MORE: dict[str, dict[str, Any]] = {
    "rst": {"rho": 0.1, "p": 0.5, "seed": 3},
    "gnp": {"rho": 0.1},
    "layer_sam": {"rho": 0.02, "layerwise": "paper"},
    "look_layer_sam": {"rho": 0.1, "k": 4, "push": "natural"},
    "fsam": {"rho": 0.1},
    "wsam": {"rho": 0.05, "gamma": 0.6},
    "aesam": {"rho": 0.1, "total_steps": STEPS},
    "msam": {"rho": 0.3},
    "s2_sam": {"rho": 0.1},
}
ALL = {**SETTINGS, **MORE}
# What a fault, a skipped step or another scale can meet is a mechanism of the step, not a method: one for each.
MECHANISMS: dict[str, tuple[str, dict[str, Any]]] = {
    "replace": ("sam", ALL["sam"]),
    "draw and mix with clean": ("grst", ALL["grst"]),
    "reuse": ("look_sam", ALL["look_sam"]),
    "surrogate gap": ("gsam", ALL["gsam"]),
    "decoupled": ("wsam", ALL["wsam"]),
    "remembered direction": ("fsam", ALL["fsam"]),
    "schedule by statistic": ("aesam", ALL["aesam"]),
    "ahead of the pass": ("msam", ALL["msam"]),
    "ahead by its own gradient": ("s2_sam", ALL["s2_sam"]),
    "few samples": ("sam", {"rho": 0.1, "samples": 2}),
    "hardest samples": ("esam", {"rho": 0.1}),
    "selected tensors": ("sl_sam", {"rho": 0.1, "s": 0.5, "seed": 3}),
}
SGD: tuple[str, dict[str, Any]] = ("sgd", {"lr": 0.1, "momentum": 0.9})
AMSGRAD: tuple[str, dict[str, Any]] = ("amsgrad", {"lr": 0.01})
PROBLEM = reference.MLP()
Built = tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]
Weights = dict[str, np.ndarray]
Record = Callable[[str, object], None]


def table(record_property: Record, loop: str, method: str) -> None:
    """Record that a method ran in a loop: the README's table is made of these records."""
    record_property("loop", loop)
    record_property("method", method)


def recipe_of(name: str) -> tuple[str, dict[str, Any]]:
    """The method and its settings, of a mechanism or of a method's own name."""
    return MECHANISMS[name] if name in MECHANISMS else (name, ALL[name])


def base_of(name: str) -> tuple[str, dict[str, Any]]:
    return AMSGRAD if name == "adasam" else SGD


def build(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu", **more: Any) -> Built:
    """The reference's network with a method's recipe and base optimizer (``more`` goes to the latter)."""
    model = PROBLEM.module().to(device, dtype)
    kind, settings = base_of(name)
    optimizer_class = {"sgd": torch.optim.SGD, "amsgrad": steppe.optim.AMSGrad}[kind]
    optimizer = optimizer_class(model.parameters(), **settings, **more)
    method, chosen = recipe_of(name)
    return model, optimizer, steppe.methods.get(method).recipe(model, optimizer, **chosen)


def batch_of(t: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor]:
    x, y = PROBLEM.torch_batch(t)
    return x.to(device, dtype), y.to(device)


def loss_of(model: nn.Module, name: str = "") -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    """The mean loss of a batch; for the mechanism that picks the hardest samples, one loss for each."""
    reduction = "none" if name == "hardest samples" else "mean"
    return lambda batch: nn.functional.cross_entropy(model(batch[0]).float(), batch[1], reduction=reduction)


def weights(model: nn.Module) -> Weights:
    return {k: p.detach().double().cpu().numpy().copy() for k, p in model.named_parameters()}


def copies(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def unchanged(model: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))


def equal(a: Any, b: Any) -> bool:
    """Nested states, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def gap(a: Weights, b: Weights) -> float:
    return max(float(abs(a[k] - b[k]).max()) for k in a)


class OnTorch:
    """The reference's problem with gradients from torch: in fp32, under autocast and with a loss scale."""

    def __init__(self, autocast: torch.dtype | None = None, scale: float = 1.0, device: str = "cpu") -> None:
        self.model = PROBLEM.module().to(device, torch.float32)
        self.device, self.scale = device, scale
        self.context = (
            nullcontext if autocast is None else lambda: torch.autocast(device, dtype=autocast, cache_enabled=False)
        )

    def weights(self) -> Weights:
        return weights(self.model)

    def grad(self, w: Weights, t: int) -> Weights:
        with torch.no_grad():
            for k, p in self.model.named_parameters():
                p.copy_(torch.from_numpy(w[k]))
        with self.context():
            loss = loss_of(self.model)(batch_of(t, torch.float32, self.device))
        named = dict(self.model.named_parameters())
        grads = torch.autograd.grad(loss * self.scale, list(named.values()))
        return {k: g.double().cpu().numpy() / self.scale for k, g in zip(named, grads, strict=True)}


def by_hand(name: str, problem: Any = PROBLEM, method: Any = None, steps: int = STEPS) -> list[Weights]:
    """The weights after each step of the slow reference, which shares no code with steppe."""
    kind, settings = base_of(name)
    chosen = reference.METHODS[name] if method is None else method
    return reference.trajectory(chosen, problem, kind, steps, settings, **ALL[name])
