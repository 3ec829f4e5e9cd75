"""The methods that the points draw from: each keeps something between steps, or decides, or both."""

import functools
from collections.abc import Callable
from typing import Any

import torch

import steppe
from steppe.methods import METHODS

from .watch import STEPS

SETTINGS: dict[str, dict[str, Any]] = {
    "look_sam": {"rho": 0.1, "k": 4, "alpha": 0.3},  # refreshes at 0, 4, 8, 12: no checkpoint but 12 stands on one
    "grst": {"rho": 0.1, "p": 0.6, "seed": 3},
    "rst": {"rho": 0.1, "p": 0.7, "seed": 2},  # in DDP each rank perturbs along its own gradient
    "fsam": {"rho": 0.1},
    "wsam": {"rho": 0.05, "gamma": 0.6},
    "aesam": {"rho": 0.1, "total_steps": STEPS},
    "gsam": {"rho": 0.1},
}
NAMES = (*SETTINGS, "composed")
ON_ADAMW = ("fsam", "gsam", "composed")


def composed(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> steppe.SharpnessAware:
    """Memory in all three parts: an average in the ascent, a norm in the schedule, a reused gradient in combine."""
    return steppe.SharpnessAware(
        model,
        optimizer,
        ascent=steppe.Ascent(rho=0.2, direction=steppe.Friendly(), metric=steppe.Adaptive()),
        schedule=steppe.AboveNorm(STEPS) & steppe.Bernoulli(0.8),
        combine=steppe.Reuse(alpha=0.2, refresh=steppe.Mix(0.7)),
        seed=5,
    )


def recipe(name: str, **common: Any) -> Callable[..., steppe.SharpnessAware]:
    """(model, optimizer) -> SharpnessAware."""
    return composed if name == "composed" else functools.partial(METHODS[name].recipe, **SETTINGS[name], **common)


def base(name: str, parameters: Any) -> torch.optim.Optimizer:
    if name in ON_ADAMW:
        return torch.optim.AdamW(parameters, lr=0.01)
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)
