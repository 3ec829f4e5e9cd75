"""Which gradient to hand on: from g (clean) and g~ (perturbed) to d, the gradient that the optimizer sees.

Gradients come as dicts from parameter name to tensor and belong to the part that is handed them: it may write on them.
All norms and inner products are global: over every parameter that has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from steppe._algebra import add_scaled_, inner, norm, ratio, scale_
from steppe._parts import Part, Value, check_choice, check_value, value_at
from steppe._shards import local

Grads = dict[str, Tensor]
Memory = dict[str, Any]


@dataclass
class Combined:
    """What a combination hands on.

    Attributes:
        grads: d, name -> gradient.
        memory: the memory to keep once the optimizer has really stepped.
        correction: name -> tensor that is subtracted, times the learning rate, after the optimizer's step (WSAM).
    """

    grads: Grads
    memory: Memory = field(default_factory=dict)
    correction: Grads | None = None


class Combine(Part):
    """Base of combinations."""

    reuses: ClassVar[bool] = False  # True: steps without an ascent are changed too, from memory

    @property
    def corrects(self) -> bool:
        """Whether it leaves a correction, which is scaled by the learning rate."""
        return False

    def needs_clean(self, t: int) -> bool:
        """Whether step ``t`` needs the gradient at the unperturbed weights (one more buffer)."""
        return True

    def ascended(self, t: int, clean: Grads, perturbed: Grads, memory: Memory) -> Combined:
        """d of a step that ascended; ``clean`` is empty when ``needs_clean`` said no."""
        raise NotImplementedError

    def skipped(self, t: int, grads: Grads, memory: Memory) -> Grads:
        """d of a step without an ascent; asked only when ``reuses``."""
        return grads

    def blank(self, params: Grads) -> Memory:
        """The memory that means the same as none: what a sharded checkpoint is loaded into."""
        return {}

    def after_change(self, memory: Memory) -> Memory:
        """The memory in itself consistent again, after parameters have left the model and their tensors the memory."""
        return memory


@dataclass(frozen=True)
class Replace(Combine):
    """d = g~ (SAM)."""

    def needs_clean(self, t: int) -> bool:
        """Never."""
        return False

    def ascended(self, t: int, clean: Grads, perturbed: Grads, memory: Memory) -> Combined:
        """The perturbed gradient."""
        return Combined(perturbed)


@dataclass(frozen=True)
class Mix(Combine):
    """d = (1 - gamma) g + gamma g~ (GNP, G-RST); gamma may exceed 1; gamma = 1 is SAM, gamma = 0 the base."""

    gamma: Value

    def __post_init__(self) -> None:
        """Check the range."""
        check_value("gamma", self.gamma, 0.0)

    def needs_clean(self, t: int) -> bool:
        """Unless gamma(t) = 1."""
        return value_at("gamma", self.gamma, t) != 1

    def ascended(self, t: int, clean: Grads, perturbed: Grads, memory: Memory) -> Combined:
        """The weighted sum of both gradients."""
        gamma = value_at("gamma", self.gamma, t)
        if gamma in (0, 1):
            return Combined(perturbed if gamma else clean)
        d = list(clean.values())
        scale_(d, 1 - gamma)
        add_scaled_(d, list(perturbed.values()), gamma)
        return Combined(clean)


@dataclass(frozen=True)
class SurrogateGap(Combine):
    """d = g~ - alpha (g - (<g, g~> / ||g~||^2) g~) (GSAM); alpha = 0 is SAM."""

    alpha: Value

    def __post_init__(self) -> None:
        """Check the range."""
        check_value("alpha", self.alpha, 0.0)

    def needs_clean(self, t: int) -> bool:
        """Unless alpha(t) = 0."""
        return value_at("alpha", self.alpha, t) != 0

    def ascended(self, t: int, clean: Grads, perturbed: Grads, memory: Memory) -> Combined:
        """The perturbed gradient less alpha times the part of g that is orthogonal to it."""
        alpha = value_at("alpha", self.alpha, t)
        if alpha == 0:
            return Combined(perturbed)
        g, d = list(clean.values()), list(perturbed.values())
        along = ratio(inner(g, d), norm(d) ** 2)
        scale_(d, 1 + alpha * along)
        add_scaled_(d, g, -alpha)
        return Combined(perturbed)


PUSHES = ("guarded", "natural", "paper")
"""How long the push of :class:`Reuse` is."""


@dataclass(frozen=True)
class Reuse(Combine):
    """Keep the part of g~ that is orthogonal to g and add it on the steps without an ascent (LookSAM).

    On an ascent:  d from ``refresh`` (g~ for Replace), and g_v = g~ - (<g~, g> / ||g||^2) g is stored.
    Otherwise:     d = g + c g_v with, by ``push``,
                   "guarded": c = min(||g|| / ||g at the refresh||, alpha ||g|| / ||g_v||), and c = 0 if <g_v, g> < 0;
                   "natural": c = ||g|| / ||g at the refresh||, which takes no alpha;
                   "paper":   c = alpha ||g|| / ||g_v||.

    The paper's push is alpha ||g|| long however short a fresh correction would be, and a stored push goes on after the
    weights have passed what it corrects, where a fresh one would turn: along a direction of large curvature that
    diverges. The guard takes the shorter of both lengths and pushes only where the fresh gradient does not object.

    Before the first refresh d = g. Where g_v is only rounding (g~ parallel to g to machine precision) nothing is
    pushed. Memory: one gradient-sized buffer.
    """

    alpha: Value = 0.7
    push: str = "guarded"
    refresh: Combine = field(default_factory=Replace)
    reuses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check ranges and the refresh part."""
        check_value("alpha", self.alpha, 0.0)
        check_choice("push", self.push, PUSHES)
        if not isinstance(self.refresh, Combine) or self.refresh.reuses:
            raise TypeError(f"refresh={self.refresh!r} was given; expected Replace(), Mix(...) or SurrogateGap(...)")

    def ascended(self, t: int, clean: Grads, perturbed: Grads, memory: Memory) -> Combined:
        """d of the refresh part, and the new g_v."""
        g_norm = norm(list(clean.values()))
        push = self._orthogonal(clean, perturbed, g_norm)
        size = self._solid(push, perturbed)
        for here in local(push.values()):
            here.masked_fill_(size.to(here.device) == 0, 0.0)
        mine = {"g_v": push, "g_v_norm": size, "g_norm": g_norm}
        out = self.refresh.ascended(t, clean, perturbed, memory)
        return Combined(out.grads, out.memory | mine, out.correction)

    def skipped(self, t: int, grads: Grads, memory: Memory) -> Grads:
        """The gradient plus the stored push."""
        alpha = value_at("alpha", self.alpha, t)
        names = [k for k in grads if k in memory.get("g_v", {})]
        if not names or (self.push != "natural" and alpha == 0):
            return grads
        g, g_v = [grads[k] for k in names], [memory["g_v"][k] for k in names]
        g_norm = norm(list(grads.values()))
        natural, paper = ratio(g_norm, memory["g_norm"]), alpha * ratio(g_norm, memory["g_v_norm"])
        pull = {"natural": natural, "paper": paper, "guarded": torch.minimum(natural, paper)}[self.push]
        if self.push == "guarded":
            pull = torch.where(inner(g_v, g).to(pull.device) < 0, torch.zeros_like(pull), pull)
        add_scaled_(g, g_v, pull)
        return grads

    def blank(self, params: Grads) -> Memory:
        """A push of length zero, and what the refresh part remembers."""
        zero = torch.zeros((), device=next(iter(params.values())).device)
        g_v = {k: torch.zeros_like(p) for k, p in params.items()}
        return {"g_v": g_v, "g_v_norm": zero, "g_norm": zero.clone()} | self.refresh.blank(params)

    def after_change(self, memory: Memory) -> Memory:
        """||g_v|| of what is left of g_v; nothing at all where nothing is left."""
        g_v: Grads = memory.get("g_v", {})
        rest = self.refresh.after_change({k: v for k, v in memory.items() if not k.startswith("g_")})
        if not g_v:
            return rest
        return rest | {"g_v": g_v, "g_v_norm": norm(list(g_v.values())), "g_norm": memory["g_norm"]}

    def _orthogonal(self, clean: Grads, perturbed: Grads, g_norm: Tensor) -> Grads:
        g, d = list(clean.values()), list(perturbed.values())
        along = ratio(inner(d, g), g_norm**2)
        if not self._needs_own_copy:
            scale_(g, -along)
            add_scaled_(g, d, 1)
            return clean
        push = {k: perturbed[k].clone() for k in clean}
        add_scaled_(push.values(), g, -along)
        return push

    @property
    def corrects(self) -> bool:
        """Where the refresh part does."""
        return self.refresh.corrects

    @property
    def _needs_own_copy(self) -> bool:
        return not isinstance(self.refresh, Replace)

    def _solid(self, push: Grads, perturbed: Grads) -> Tensor:
        """||g_v||, or 0 (no push) where it is nothing but the rounding of g~, or no number."""
        tensors = list(push.values())
        size, whole = norm(tensors), norm(list(perturbed.values()))
        floor = max((_rounding(x.dtype) for x in tensors), default=0.0)
        return torch.where((size > floor * whole) & size.isfinite(), size, torch.zeros_like(size))


@dataclass(frozen=True)
class Decoupled(Combine):
    """WSAM: the optimizer is given g; after its step w <- w - lr gamma / (1 - gamma) (g~ - g).

    gamma in [0, 1); gamma = 0 is the base, 0.5 equals SAM on plain SGD. Clipping or unscaling the optimizer's gradient
    scales the correction alike. Cost: one more gradient-sized buffer until the optimizer's step.
    """

    gamma: Value = 0.9

    def __post_init__(self) -> None:
        """Check the range."""
        check_value("gamma", self.gamma, 0.0, 1.0)
        _refuse_one(self.gamma)

    @property
    def corrects(self) -> bool:
        """Always."""
        return True

    def ascended(self, t: int, clean: Grads, perturbed: Grads, memory: Memory) -> Combined:
        """g, and gamma / (1 - gamma) (g~ - g) as the correction."""
        gamma = value_at("gamma", self.gamma, t, 0.0, 1.0)
        _refuse_one(gamma)
        push = list(perturbed.values())
        add_scaled_(push, list(clean.values()), -1)
        # An overflow in g~ alone must be seen in what the optimizer is given: 0 * inf is NaN, 0 * x nothing.
        add_scaled_(list(clean.values()), push, 0)
        scale_(push, gamma / (1 - gamma))
        return Combined(clean, correction=perturbed)


def _refuse_one(gamma: Value) -> None:
    if gamma == 1:
        raise ValueError("gamma=1 was given; expected gamma below 1, as gamma / (1 - gamma) weighs the correction")


def _rounding(dtype: torch.dtype) -> float:
    """The relative error of a gradient: some units in the last place; in few bits one rounding outweighs the sums."""
    eps = torch.finfo(dtype).eps
    return eps / 2 if dtype in (torch.float16, torch.bfloat16) else 4 * eps
