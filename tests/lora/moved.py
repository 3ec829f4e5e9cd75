"""Flat-LoRA and Bi-LoRA the slow way: the base weights are really moved before a step's passes, and back after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steppe._rounding import generator

SETTINGS: dict[str, dict[str, Any]] = {
    "flat_lora": {"sigma": 0.3, "total_steps": 6, "seed": 2},
    "bi_lora": {"rho": 0.05, "rule": "sgd", "lr": 0.4, "seed": 2},
}
TOTAL, SEED, RATE, RHO = 6, 2, 0.4, 0.05


class Hand:
    """One of the two, on a model whose LoRA layers are laid out as PEFT's are."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name, self.step_count = name, 0
        self.layers = {n: m for n, m in model.named_modules() if hasattr(m, "base_layer") and hasattr(m, "lora_A")}
        self.auxiliary = {n: self._start(n, m) for n, m in self.layers.items()}

    def _start(self, name: str, layer: Any) -> tuple[Tensor, Tensor]:
        (m, n), r = layer.base_layer.weight.shape, layer.lora_A["default"].weight.shape[0]
        a = torch.empty(r, n, dtype=layer.base_layer.weight.dtype)
        a.uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=generator(a.device, f"bi_lora:{name}", SEED, 0))
        return a, torch.zeros(m, r, dtype=a.dtype)

    def _move(self, name: str, layer: Any) -> Tensor:
        if self.name == "bi_lora":
            a, b = self.auxiliary[name]
            return b @ a
        weight = layer.base_layer.weight.detach()
        merged = weight + layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        sigma = 0.3 * (1 - math.cos(math.pi * min(self.step_count / TOTAL, 1))) / 2
        rng = generator(weight.device, f"flat_lora:{name}", SEED, self.step_count)
        draws = torch.randn(weight.shape, generator=rng, dtype=weight.dtype)
        return draws * sigma * merged.detach().norm(dim=1, keepdim=True) / math.sqrt(weight.shape[1])

    def step(self, losses: Sequence[Callable[[], Tensor]], optimizer: torch.optim.Optimizer) -> float:
        """The passes over all micro-batches and the optimizer's step; the sum of the losses comes back."""
        weights = {name: layer.base_layer.weight for name, layer in self.layers.items()}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.data += self._move(name, self.layers[name])
            weight.requires_grad_(self.name == "bi_lora")
        total = 0.0
        for loss_of in losses:
            loss = loss_of()
            loss.backward()
            total += float(loss.detach())
        climbs = {name: weight.grad for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.grad = None
            weight.requires_grad_(False).copy_(before[name])
        optimizer.step()
        optimizer.zero_grad()
        if self.name == "bi_lora":
            self._climb(climbs)
        self.step_count += 1
        return total

    def _climb(self, grads: dict[str, Any]) -> None:
        pairs = self.auxiliary.items()
        moved = {n: (a + RATE * b.T @ grads[n], b + RATE * grads[n] @ a.T) for n, (a, b) in pairs}
        length = math.sqrt(sum(float((b @ a).square().sum()) for a, b in moved.values()))
        shrink = math.sqrt(RHO / length) if length > RHO else 1.0
        self.auxiliary = {n: (a * shrink, b * shrink) for n, (a, b) in moved.items()}
