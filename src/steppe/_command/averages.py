"""Which averages of the weights are kept along a training, and those of a loop that somebody else owns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from steppe._backup import SavedWeights

T = TypeVar("T")
Tensors = tuple[Tensor, ...] | list[Tensor]
SHARES = 10
"""The exponential average reaches back over one so manieth of the steps."""

LATEST = 5
"""Epochs at whose ends LAWA takes the weights; of trainings shorter than twice that, it takes them at every tenth."""


def decay(steps: int) -> float:
    """Of the exponential average over a tenth of so many steps."""
    return min(max(1 - SHARES / steps, 0.0), 0.9999)


def latest_steps(steps: int, per_epoch: int) -> list[int]:
    """After which steps LAWA takes the weights: the last, and those an epoch, or a tenth of the training, before.

    Source: LAWA, the average of the latest weights (arXiv 2306.03241).
    """
    apart = max(1, min(per_epoch, steps // (2 * LATEST)))
    return list(range(steps, 0, -apart))[:LATEST]


def exponential(steps: int) -> Callable[[Tensors, Tensors, Any], None]:
    """The update of an exponential average over a tenth of so many steps, for torch's `AveragedModel`.

    What is no number (positions, masks, counts) is the latest: torch's own rounds a position down that it averages.
    """
    update: Callable[..., Any] = get_ema_multi_avg_fn(decay(steps))

    def updated(averaged: Tensors, latest: Tensors, count: Any) -> None:
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            update(averaged, latest, count)
        else:
            torch._foreach_copy_(averaged, latest)

    return updated


class Averages:
    """The averages of a model while its optimizer, of several the last, steps so often, and figures of it at each."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], steps: int) -> None:
        self._live = [each for each in [*model.parameters(), *model.buffers()] if each.is_floating_point()]
        self._ema, self._mean = [], []
        self._update, self._taken = get_ema_multi_avg_fn(decay(steps)), set(latest_steps(steps, steps))
        self._step = 0
        last = optimizer if isinstance(optimizer, Optimizer) else optimizer[-1]
        self._handle = last.register_step_post_hook(self._stepped)

    _ema: list[Tensor]
    _mean: list[Tensor]

    @torch.no_grad()
    def _stepped(self, *_: Any) -> None:
        self._step += 1
        now = [each.detach() for each in self._live]
        if self._ema:
            self._update(self._ema, now, self._step)
        else:
            self._ema = [each.clone() for each in now]
        if self._step in self._taken:
            share = 1 / (1 + sum(step < self._step for step in self._taken))
            self._mean = self._mean or [each.clone() for each in now]
            torch._foreach_lerp_(self._mean, now, share)

    def measured(self, measure: Callable[[], T]) -> dict[str, T]:
        """What `measure` gives of the model at each average; the weights are back after it, bit for bit."""
        self._handle.remove()
        found = {}
        for name, average in (("averaged", self._ema), ("lawa", self._mean)):
            if average:
                with self._at(average):
                    found[name] = measure()
        return found

    @contextmanager
    def _at(self, average: Sequence[Tensor]) -> Iterator[None]:
        before = SavedWeights(self._live)
        try:
            with torch.no_grad():
                torch._foreach_copy_(self._live, list(average))
            yield
        finally:
            before.back()
