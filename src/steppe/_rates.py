"""The learning rate in an optimizer's group, for what is scaled by it: whether it is there, and a step's real one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from steppe._optimizers import Optimizers

_OF_THEIR_OWN = ("DoG", "LDoG", "DoWG", "Momo", "MomoAdam", "AliG", "COCOB")
"""Optimizers that make their rate at each step and do not say so in their groups, as Prodigy does (``d``)."""


def has_rate(group: Mapping[str, Any]) -> bool:
    """Whether ``lr`` is the number that the optimizer steps by (Adafactor with relative steps makes its own)."""
    rate = group.get("lr")
    number = isinstance(rate, (int, float, Tensor)) and not isinstance(rate, bool)
    return number and not group.get("relative_step", False)


def check_rates(optimizers: Optimizers, who: str, exact: bool = False) -> None:
    """Refuse optimizers without a rate.

    Args:
        optimizers: whose groups.
        who: what is scaled by the rate.
        exact: a factor of the rate is not enough.

    Raises:
        ValueError: ``lr`` is no number, or it is only a factor of the rate and ``exact`` was asked for.
    """
    for stepper in optimizers.steppers:
        for group in stepper.optimizer.param_groups:
            if not has_rate(group):
                relative = " with relative_step=True" if group.get("relative_step", False) else ""
                raise ValueError(
                    f"{stepper.name} has lr={group.get('lr')!r}{relative}, so its rate is not known, and {who} is "
                    "scaled by it; expected a number in every group, such as lr=1e-3 with relative steps off"
                )
            if exact and ("d" in group or stepper.name in _OF_THEIR_OWN):
                raise ValueError(
                    f"{stepper.name} finds the rate by itself (lr={group['lr']!r} is a factor of it, not the rate), "
                    f"and {who} is scaled by it; expected an optimizer whose lr is the rate, such as SGD or AdamW, or "
                    "a method without a correction"
                )
