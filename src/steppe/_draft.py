"""The optimizer step under construction: what it will leave behind once it has really been taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steppe._algebra import as_real, norm, ratio, scale_
from steppe._gradients import Gradients
from steppe._shards import local
from steppe.combine import Combined, Grads


class Last(NamedTuple):
    """What the latest ``backward`` did.

    Attributes:
        ascended: whether it ran a second pass at perturbed weights.
        loss: of the unperturbed pass, 0-dim. perturbed_loss: of the second (of the whole batch, where that pass is on
            chosen samples; None, where that is not known: K-SAM); their difference is the surrogate gap.
        perturbation_norm: ||eps||, with ``measure=True``. displacement: the norm of what the weights moved, which
            rounding makes smaller in few bits.
    """

    ascended: bool
    loss: Tensor | None = None
    perturbed_loss: Tensor | None = None
    perturbation_norm: Tensor | None = None
    displacement: Tensor | None = None

    @property
    def surrogate_gap(self) -> Tensor | None:
        """L(w + eps) - L(w), where both passes were run by ``backward``."""
        return None if self.loss is None or self.perturbed_loss is None else self.perturbed_loss - self.loss


@dataclass
class Draft:
    """Decision, memory and correction of the present step; dropped when the step is never taken (GradScaler).

    ``left``: whether its gradients lie in ``.grad``, or have lain there.
    """

    decision: bool | None = None
    left: bool = False
    memory: dict[str, Any] = field(default_factory=dict)
    correction: Grads = field(default_factory=dict)
    handed: dict[int, Tensor] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)

    def remember(self, part: str, memory: dict[str, Any]) -> None:
        """Memory that ``part`` will have after this step."""
        if memory:
            self.memory = self.memory | {part: memory}

    def keep(self, out: Combined) -> None:
        """What a combination leaves beside its gradient."""
        self.remember("combine", out.memory)
        for name, tensor in (out.correction or {}).items():
            earlier = self.correction.get(name)
            self.correction[name] = tensor if earlier is None else earlier.add_(tensor)

    def note_handed(self, gradients: Gradients) -> None:
        """Measure the gradient that each optimizer is given, if a correction has to stay in proportion to it."""
        if self.correction:
            self.handed = {i: norm(gradients.handed(i)) for i in range(gradients.parameters.count)}
            self.closed = set()

    def shrink(self, gradients: Gradients, which: int) -> None:
        """Clipping, unscaling or zeroing since :meth:`note_handed` scaled the gradient: scale the correction alike."""
        if self.correction and which in self.handed:
            factor = ratio(norm(gradients.handed(which)), self.handed[which])
            for here in local(self._correction_of(gradients, which).values()):
                # Zero, not c * 0, for an abandoned step, which may hold inf or NaN.
                here.copy_(torch.where(factor.to(here.device) > 0, here * factor.to(here.device), 0.0))

    def close(self, gradients: Gradients, which: int, unscaled_later: Tensor | None) -> None:
        """At an optimizer's step, once: the correction in proportion to the gradient that the step takes.

        Args:
            gradients: as they are handed.
            which: the number of the optimizer.
            unscaled_later: the loss scale that a fused optimizer takes off inside its step.
        """
        if which in self.closed or not self.correction:
            return
        self.closed.add(which)
        self.shrink(gradients, which)
        if unscaled_later is not None:
            scale_(self._correction_of(gradients, which).values(), 1 / unscaled_later.reshape(()))

    @torch.no_grad()
    def correct(self, gradients: Gradients, which: int) -> None:
        """After an optimizer's step: w <- w - lr * correction, with each group's present learning rate."""
        parameters = gradients.parameters
        for entry in parameters.entries if self.correction else ():
            if entry.name in self.correction and parameters.owner(entry) == which:
                as_real(entry.param).sub_(self.correction[entry.name] * parameters.group_of(entry)["lr"])

    def _correction_of(self, gradients: Gradients, which: int) -> Grads:
        parameters = gradients.parameters
        mine = (e.name for e in parameters.entries if e.name in self.correction and parameters.owner(e) == which)
        return {name: self.correction[name] for name in mine}
