"""Directions that need no gradient of this step, so that the pass at w + eps is the only one.

The perturbation is made before the forward pass, from what the optimizer or the last real step left, and the weights
are back, bit for bit, before anything else of the loop runs: unlike implementations that keep the weights perturbed
between steps, checkpoints and evaluation always see the exact weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from steppe._algebra import add_scaled_, as_real, cloned, scale_
from steppe._parts import check
from steppe.ascent import Direction, Gradient, Grads, Memory, Scale

_COMPLEX, _KINDS = Tensor.is_complex, (attrgetter("dtype"), attrgetter("device"))
BUFFERS = ("momentum_buffer", "exp_avg")  # torch's names for the first moment in an optimizer's state


class Ahead(Direction):
    """Base of directions that are known before any pass of the step.

    Cost: 1 pass with ``combine=Replace()``; a combination or a schedule that reads the clean gradient adds its own.
    """

    ahead: ClassVar[bool] = True

    __call__ = Gradient.__call__  # what `vector` made, as it is; memory comes from `after`

    @property
    def follows(self) -> bool:
        """Whether anything is kept of the gradients that the steps take."""
        return True


@dataclass(frozen=True)
class Momentum(Ahead):
    """The momentum (MSAM): v = sign * m, with m the optimizer's own momentum or an average kept here.

    Args:
        sign: -1, the paper's and its authors' code: against the momentum m = mu m + g of torch, that is along the way
            of the latest steps. +1: along the averaged gradient, uphill as SAM's direction.
        decay: None: m is the optimizer's ``momentum_buffer`` (SGD) or ``exp_avg`` (Adam and its kin); nothing is
            stored. A number in [0, 1): an average of the gradients handed on, m <- decay m + (1 - decay) d, moved
            by every real step; for optimizers that keep no momentum. Memory: one gradient-sized buffer.

    Raises:
        ValueError: ``decay=None`` with an optimizer that keeps no momentum.
    """

    sign: int = -1
    decay: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if isinstance(self.sign, bool) or self.sign not in (-1, 1):
            raise ValueError(f"sign={self.sign!r} was given; expected -1 (the paper's) or 1")
        if self.decay is not None:
            check("decay", self.decay, 0.0, 1.0)
            if self.decay == 1:
                raise ValueError("decay=1 was given; expected a number below 1, as the average would never move")

    def vector(self, params: Grads, optimizer: Any, memory: Memory, step: int, seed: int) -> Grads:
        """A copy of the momentum, with its sign."""
        if self.decay is not None:
            found = _copies(memory.get("average", {}), params, self.sign)
        else:
            states = optimizer.state
            kept = {k: m for k, p in params.items() if (m := _momentum(states, p)) is not None}
            found = _copies(kept, params, self.sign)
            if not found and params and step > 0:
                raise ValueError(_no_momentum(optimizer))
        return found

    @property
    def follows(self) -> bool:
        """Whether the average is kept here."""
        return self.decay is not None

    def after(self, grads: Grads, memory: Memory, scale: Scale = 1.0) -> Memory:
        """The moved average, if it is kept here."""
        if self.decay is None:
            return {}
        old: Grads = memory.get("average", {})
        fresh = {k: g.clone() for k, g in grads.items()}
        scale_(fresh.values(), (1 - self.decay) / scale)
        known = [k for k in fresh if k in old]
        add_scaled_([fresh[k] for k in known], [old[k] for k in known], self.decay)
        return {"average": old | fresh}

    def blank(self, params: Grads) -> Memory:
        """An average of zeros, if it is kept here."""
        return {} if self.decay is None else {"average": {k: torch.zeros_like(p) for k, p in params.items()}}

    def check(self, optimizer: Optimizer) -> None:
        """Refuse an optimizer whose settings show that it keeps no momentum."""
        unknown = not type(optimizer).__module__.startswith("torch.optim")
        keeps = ("betas" in group or group.get("momentum", unknown) for group in optimizer.param_groups)
        if self.decay is None and not any(keeps):
            raise ValueError(_no_momentum(optimizer))


@dataclass(frozen=True)
class Previous(Ahead):
    """The gradient that the last real step was handed (S2-SAM; AsyncSAM's one step old ascent).

    It is taken when the optimizer steps: unscaled, averaged over processes, after clipping. (An optimizer that is
    handed a closure clips within its step: there it is taken before.) A step that never happens leaves the older one.
    Memory: one gradient-sized buffer.
    """

    def vector(self, params: Grads, optimizer: Any, memory: Memory, step: int, seed: int) -> Grads:
        """A copy of that gradient."""
        return _copies(memory.get("previous", {}), params)

    def after(self, grads: Grads, memory: Memory, scale: Scale = 1.0) -> Memory:
        """A copy of the gradient, without its loss scale."""
        fresh = dict(zip(grads, cloned(list(grads.values())), strict=True))
        if isinstance(scale, Tensor) or scale != 1:
            scale_(fresh.values(), 1 / scale)
        return {"previous": fresh}

    def blank(self, params: Grads) -> Memory:
        """Zeros."""
        return {"previous": {k: torch.zeros_like(p) for k, p in params.items()}}


def _copies(tensors: Grads, params: Grads, sign: int = 1) -> Grads:
    """New tensors for the parameters that have one, in their order, type and place; one call for all where it can.

    Of a complex parameter, pairs of real numbers. ``sign``: -1 turns them round.
    """
    names = [k for k in params if k in tensors]
    found, like = [tensors[k] for k in names], [params[k] for k in names]
    if any(map(_COMPLEX, like)):
        found, like = list(map(as_real, found)), list(map(as_real, like))
    if all(list(map(kind, found)) == list(map(kind, like)) for kind in _KINDS):
        new = cloned(found, sign)
    else:
        new = [t.to(device=p.device, dtype=p.dtype, copy=True).mul_(sign) for t, p in zip(found, like, strict=True)]
    return dict(zip(names, new, strict=True))


def _momentum(states: Any, param: Tensor) -> Tensor | None:
    state: Any = states.get(param, {})
    for found in map(state.get, BUFFERS):
        if isinstance(found, Tensor):
            counts = found.is_floating_point() or found.is_complex()
            return found if counts and found.shape == param.shape else None
    return None


def _no_momentum(optimizer: Any) -> str:
    name = getattr(optimizer, "name", type(optimizer).__name__)
    return (
        f"{name} keeps no momentum here (no {' or '.join(BUFFERS)} in its state); expected an "
        "optimizer with momentum, such as SGD(momentum=0.9) or AdamW, or an average kept beside it: decay=0.9"
    )
