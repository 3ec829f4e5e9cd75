"""A closure that begins with ``zero_grad``: what earlier passes had left is gone then, as without the method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from steppe._parameters import Parameters

Kept = tuple[Tensor, Tensor]


class Clearing:
    """Sees whether the first call of a loss function clears gradients that were put aside before it.

    Meanwhile zeros lie where one gradient of each optimizer was, the smallest, and where those outside the model were.

    Attributes:
        gone: ids of the parameters whose earlier gradients were cleared.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._waiting: list[list[Tensor]] = []
        self._moved = False
        self.gone: set[int] = set()

    def begin(self, earlier: list[Kept], outside: list[Kept], moved: bool) -> None:
        """These were put aside; the next call may clear them.

        ``outside``: of parameters that are not the model's. ``moved``: a wrapper may lay gradients into its own buckets
        meanwhile.
        """
        self._moved = moved
        self._waiting = self._by_optimizer([p for p, _ in earlier]) if earlier else []
        self._waiting += [[p] for p, _ in outside]  # nobody knows whose they are

    def kept(self, there: list[Kept]) -> list[Kept]:
        """What of these is still to be added to."""
        return [(p, g) for p, g in there if id(p) not in self.gone] if self.gone else there

    def over(self) -> None:
        """No call is watched any more."""
        self._waiting = []

    def heeded(self, loss_of: Any) -> Any:
        """``loss_of``, whose first call since :meth:`begin` is watched, where there is one; nothing is gone as yet."""
        self.gone = set()
        if not self._waiting:
            return loss_of

        def heeded(*arguments: Any) -> Any:
            waiting, self._waiting = self._waiting, []
            if not waiting:
                return loss_of(*arguments)
            marks = [_mark(params) for params in waiting]
            loss = loss_of(*arguments)
            for params, (param, zeros) in zip(waiting, marks, strict=True):
                self._look(params, param, zeros, getattr(loss, "grad_fn", None) is None)
            return loss

        return heeded

    def _look(self, params: list[Tensor], param: Tensor, zeros: Tensor, has_run: bool) -> None:
        """``has_run``: the function has run a backward of its own, which adds to what it finds."""
        now, untouched = param.grad, zeros._version == 0
        if has_run:
            cleared = now is not zeros and not self._moved
        else:
            cleared = now is None or (now is zeros and not untouched)
        if cleared:
            self.gone.update(map(id, params))
        if not has_run or (now is zeros and untouched):
            param.grad = None

    def _by_optimizer(self, params: list[Tensor]) -> list[list[Tensor]]:
        if self._parameters.count == 1 and not self._parameters.rest:
            return [params]
        owners = {id(e.param): self._parameters.owner(e) for e in self._parameters.entries}
        parts: dict[int | None, list[Tensor]] = {}
        for param in params:
            parts.setdefault(owners.get(id(param)), []).append(param)
        return list(parts.values())


def _mark(params: list[Tensor]) -> Kept:
    """Zeros in the place of one gradient, with a count of versions that begins at 0."""
    param = min(params, key=Tensor.numel)
    param.grad = zeros = torch.zeros_like(param, requires_grad=False)
    return param, zeros
