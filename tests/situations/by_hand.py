"""SAM's step by hand on modules whose forward moves a state, and how far two states are apart."""

from __future__ import annotations

import copy
from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from tests.situations.stateful import Bank
from torch import Tensor, nn

LR, RHO = 0.1, 0.3


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for n, p in model.named_parameters() if p.requires_grad and n != "q"]


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a forward may have moved, as plain data."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        for key, value in {**module._buffers, **module._parameters, **own}.items():
            found[f"{name}.{key}"] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (list, tuple, deque)):
        return [_plain(v) for v in value]
    if isinstance(value, (Bank, SimpleNamespace)):
        value = vars(value)
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def far(a: Any, b: Any) -> float:
    """The largest difference; infinite where the two are not of one shape."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        fits = a.shape == b.shape and a.dtype == b.dtype
        return float((a.double() - b.double()).abs().max()) if fits and a.numel() else 0.0 if fits else float("inf")
    if isinstance(a, list) and isinstance(b, list):
        return max(map(far, a, b), default=0.0) if len(a) == len(b) else float("inf")
    if isinstance(a, dict) and isinstance(b, dict):
        return max((far(a[k], b[k]) for k in a), default=0.0) if list(a) == list(b) else float("inf")
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b)
    return 0.0 if type(a) is type(b) and (a == b or callable(a)) else float("inf")


class ByHand:
    """SAM on a model of its own: each pass runs on a fresh copy of the state that the step began with."""

    def __init__(self, model: nn.Module, rho: float = RHO, lr: float = LR) -> None:
        self.model, self.rho, self.lr = model, rho, lr
        self.gap = 0.0

    def gradient(self, pieces: list[Tensor]) -> list[Tensor]:
        """The gradient at w + eps; the state becomes what the first pass left."""
        there = copy.deepcopy(self.model)
        clean, before = self._pass(self.model, pieces)
        length = torch.sqrt(sum((g.double() ** 2).sum() for g in clean))
        with torch.no_grad():
            for p, g in zip(trained(there), clean, strict=True):
                p += self.rho * g / length
        found, after = self._pass(there, pieces)
        self.gap = after - before
        return found

    def step(self, *groups: list[Tensor]) -> list[Tensor]:
        """A step of SGD with the sum of the groups' gradients, each with a perturbation of its own."""
        total = [torch.stack(g).sum(0) for g in zip(*(self.gradient(g) for g in groups), strict=True)]
        with torch.no_grad():
            for p, g in zip(trained(self.model), total, strict=True):
                p -= self.lr * g
        return total

    @staticmethod
    def _pass(model: nn.Module, pieces: list[Tensor]) -> tuple[list[Tensor], float]:
        total = torch.zeros((), dtype=torch.float64)
        for x in pieces:
            value = loss(model, x)
            value.backward()
            total += value.detach()
        grads = [p.grad for p in trained(model)]
        for p in trained(model):
            p.grad = None
        return grads, float(total)
