"""Curves over training: a value as a function of the optimizer step ``t`` = 0, 1, ... of ``total_steps`` T.

Wherever steppe takes a number for p, rho, gamma or alpha it also takes one of these, or any function of ``t``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from steppe._parts import Part, Value, check, check_count, check_value, value_at

ROUNDED = 1e-6
"""How far a learning rate may be from its highest, by share, and still stand there."""


@dataclass(frozen=True)
class Piecewise(Part):
    """``before`` while t <= ``boundary`` (in steps), ``after`` from then on."""

    before: float
    after: float
    boundary: float
    exchangeable: ClassVar[bool] = True
    steps: ClassVar[tuple[str, ...]] = ("boundary",)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("before", "after", "boundary"):
            check(name, getattr(self, name))

    def __call__(self, t: int) -> float:
        """The value at step ``t``."""
        return self.before if t <= self.boundary else self.after


@dataclass(frozen=True)
class Linear(Part):
    """From ``start`` at t = 0 to ``end`` at t = T, in a straight line; constant after T."""

    start: float
    end: float
    total_steps: int
    exchangeable: ClassVar[bool] = True
    steps: ClassVar[tuple[str, ...]] = ("total_steps",)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check("start", self.start)
        check("end", self.end)
        check_count("total_steps", self.total_steps)

    def __call__(self, t: int) -> float:
        """The value at step ``t``."""
        return self.start + (self.end - self.start) * min(t / self.total_steps, 1.0)


@dataclass(frozen=True)
class Cosine(Linear):
    """From ``start`` to ``end`` along half a cosine: start + (end - start)(1 - cos(pi t / T)) / 2."""

    def __call__(self, t: int) -> float:
        """The value at step ``t``."""
        fraction = min(t / self.total_steps, 1.0)
        return self.start + (self.end - self.start) * (1 - math.cos(math.pi * fraction)) / 2


@dataclass(frozen=True)
class Through(Part):
    """Through ``points`` (step, value), in straight lines; constant before the first and after the last.

    A ramp of the radius: ``Through(((700, 0.0), (800, 0.05)))``.
    """

    points: tuple[tuple[float, float], ...]
    exchangeable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check numbers and order."""
        pairs = isinstance(self.points, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in self.points)
        if not pairs or not self.points:
            raise ValueError(f"points={self.points!r} was given; expected pairs of step and value, ((0, 0.0), ...)")
        for point in self.points:
            check("step", point[0])
            check("value", point[1])
        steps = [step for step, _ in self.points]
        if any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
            raise ValueError(f"points={self.points!r} was given; expected steps that rise from point to point")

    def __call__(self, t: int) -> float:
        """The value at step ``t``."""
        before, value = self.points[0]
        for step, after in self.points:
            if t <= step:
                return after if step == before else value + (after - value) * max(t - before, 0) / (step - before)
            before, value = step, after
        return value


@dataclass(frozen=True)
class Quotient(Part):
    """min(``numerator`` / ``denominator``(t), ``maximum``): G-RST's gamma = kappa / p(t), capped."""

    numerator: float
    denominator: Value
    maximum: float
    exchangeable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        check("numerator", self.numerator, 0.0)
        check_value("denominator", self.denominator, 0.0)
        check("maximum", self.maximum, 0.0)

    def __call__(self, t: int) -> float:
        """The value at step ``t``; the maximum where the denominator is 0."""
        below = value_at("denominator", self.denominator, t)
        return min(self.numerator / below, self.maximum) if below > 0 else self.maximum


@dataclass(frozen=True)
class FollowLR(Part):
    """GSAM's radius: rho moves between two values as the group's learning rate moves between two.

    rho = rho_min + (rho_max - rho_min) (lr - lr_min) / (lr_max - lr_min), read from each parameter group at each step.
    A rate within a millionth of lr_max is lr_max: schedulers that multiply step by step miss it by some roundings.
    """

    rho_max: float
    rho_min: float
    lr_max: float
    lr_min: float = 0.0
    exchangeable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        check("rho_min", self.rho_min, 0.0)
        check("rho_max", self.rho_max, 0.0)
        if not self.lr_max > self.lr_min:
            raise ValueError(f"lr_max={self.lr_max!r} was given with lr_min={self.lr_min!r}; expected lr_max > lr_min")

    def at(self, group: Mapping[str, Any]) -> float:
        """The radius for a parameter group at its present learning rate."""
        lr = float(group["lr"])
        if math.isclose(lr, self.lr_max, rel_tol=ROUNDED):
            return self.rho_max
        fraction = (lr - self.lr_min) / (self.lr_max - self.lr_min)
        return self.rho_min + (self.rho_max - self.rho_min) * min(max(fraction, 0.0), 1.0)


@dataclass(frozen=True)
class LossBudget(Part):
    """LE-SAM's radius: so far that the loss rises by ``sigma`` to first order, and at most ``rho_max``.

    rho_t = min(sigma_t / ||T v||, rho_max) with the ascent's metric T and, over its scope, the norm of its direction v
    (SAM's: ||g||). For any scope: eps as it is at rho_max, made shorter until <v, eps> is no more than sigma_t. No
    host reads the norm. Steps of ``sigma`` or ``rho_max`` 0 are the base's.

    Args:
        sigma: the budget, in units of the unscaled loss, >= 0: a number or a curve of t. Large: a constant radius.
        rho_max: the largest radius, >= 0: a number or a curve of t. An optimizer group's own ``rho`` wins over it.
    """

    sigma: Value
    rho_max: Value
    exchangeable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_value("sigma", self.sigma, 0.0, why="sigma is the rise of the loss that an ascent may take")
        check_value("rho_max", self.rho_max, 0.0, why="rho_max is the largest radius")

    def at(self, t: int) -> float:
        """The largest radius at step ``t``; 0 where there is no budget."""
        return value_at("rho_max", self.rho_max, t) if self.budget(t) else 0.0

    def budget(self, t: int) -> float:
        """The rise that step ``t`` may take."""
        return value_at("sigma", self.sigma, t)
