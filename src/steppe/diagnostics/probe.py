"""A probe that watches a method while it trains: what its perturbation does to loss and gradient, and lambda_max."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from steppe._algebra import inner, norm, ratio
from steppe._draft import Last
from steppe._parts import check_count
from steppe._words import an
from steppe.combine import Combine, Combined
from steppe.diagnostics._surface import LossOf, NotFinite
from steppe.diagnostics.hessian import lambda_max
from steppe.gradient import SharpnessAware

To = Callable[[str, float, int], Any]


class Probe:
    """Notes, on every n-th step of a method, the surrogate gap, ||eps||, the cosine of g and g~, and lambda_max.

        probe = steppe.Probe(sharp, every=50, to=writer.add_scalar)     # TensorBoard's SummaryWriter, or any such
        for batch in loader:
            with probe:
                loss = sharp.backward(loss_of, batch)                  # or ascend() ... restore()
            optimizer.step(); optimizer.zero_grad()
        probe.records                                                  # [{"step": 0, "surrogate_gap": 0.03, ...}, ...]

    The training is the same bit for bit, with and without it. A record holds what the step itself computed:

    - ``surrogate_gap`` L(w + eps) - L(w), where ``backward`` ran both passes on the same batch;
    - ``perturbation_norm`` ||eps||;
    - ``cosine`` of g and g~, where the step has the gradient of the whole batch at w (not of few samples, nor of
      methods of one pass);
    - ``lambda_max`` of the Hessian at w, on batches of its own; NaN where that has none.

    The first three wait for the first step at or after the n-th that ascends.

    Args:
        sharp: the method.
        every: steps from one record to the next; 0: never.
        to: called with name, value and step as they are recorded, such as ``SummaryWriter.add_scalar``; it waits for
            the device.
        loss_of: the scalar loss of a batch, for ``lambda_max``.
        batches: to measure it on, always the same (a few are enough); the model is in the mode in which it trains.
        lanczos: steps for it, >= 1.
        prefix: before the names that ``to`` is given.

    Cost: on other steps two calls that compare two numbers; on a step that is recorded two norms, one inner product
    and one buffer (the clean gradient, where the method does not keep it anyway), and for ``lambda_max`` about four
    passes for each step of Lanczos.

    Raises:
        TypeError: ``sharp`` is no SharpnessAware. ValueError: an argument is out of range, or one of ``loss_of`` and
            ``batches`` is missing.
    """

    def __init__(
        self,
        sharp: SharpnessAware,
        *,
        every: int = 100,
        to: To | None = None,
        loss_of: LossOf | None = None,
        batches: Iterable[Any] | None = None,
        lanczos: int = 20,
        prefix: str = "probe/",
    ) -> None:
        if not hasattr(sharp, "ascent"):
            raise TypeError(
                f"{an(type(sharp).__name__)} was given; expected a SharpnessAware, which has a perturbation to look at"
            )
        check_count("every", every, 0)
        check_count("lanczos", lanczos)
        if (loss_of is None) != (batches is None):
            raise ValueError("one of loss_of and batches was given; expected both, for lambda_max, or neither")
        self.sharp, self.every, self.prefix = sharp, every, prefix
        self._to, self._loss_of, self._lanczos = to, loss_of, lanczos
        self._batches = None if batches is None else list(batches)
        self._records: list[dict[str, Any]] = []
        self._next = self._next_end = 0 if every else -1  # the step from which on one is wanted
        self._before: _Before | None = None

    @property
    def records(self) -> list[dict[str, float]]:
        """What was noted, by step (waits for the device); what a step had not is left out."""
        return [{name: _number(value) for name, value in record.items()} for record in self._records]

    @property
    def count(self) -> int:
        """How many records there are."""
        return len(self._records)

    def __enter__(self) -> Probe:
        """Begin to watch, where this step is to be recorded."""
        if 0 <= self._next <= self.sharp.step or 0 <= self._next_end <= self.sharp.step:
            self._before = _Before(self.sharp)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Stop watching, and note what was seen; nothing of a step that raised."""
        before, self._before = self._before, None
        if before is None:
            return
        before.back()
        if error is None:
            self._note(before)

    def _note(self, before: _Before) -> None:
        step, found = self.sharp.step, dict[str, Any]()
        if self._next <= step and (found := before.seen()):
            self._next = self._after(step)
        if self._next_end <= step:
            self._next_end = self._after(step)
            if self._batches is not None and self._loss_of is not None:
                found["lambda_max"] = self._end(self._loss_of, self._batches)
        if not found:
            return
        self._records.append({"step": step} | found)
        for name, value in found.items() if self._to else ():
            self._to(self.prefix + name, _number(value), step)  # type: ignore[misc]

    def _end(self, loss_of: LossOf, batches: list[Any]) -> float:
        try:
            return lambda_max(self.sharp.model, loss_of, batches, steps=self._lanczos).value
        except NotFinite:  # of a training that diverges it is no number; the training goes on
            return math.nan

    def _after(self, step: int) -> int:
        return (step // self.every + 1) * self.every


class _Before:
    """A method's parts as they were, and what is seen with those that stand in their place."""

    def __init__(self, sharp: SharpnessAware) -> None:
        self._sharp, self._combine, self._last = sharp, sharp.combine, sharp.last
        self._measure = sharp.measure
        self._cosine: Tensor | None = None
        sharp.combine = self._watched(sharp.combine)
        sharp.measure = True

    def back(self) -> None:
        self._sharp.combine = self._combine
        self._sharp.measure = self._measure

    def _watched(self, combine: Combine) -> Combine:
        """The same part, asking for the clean gradient where it costs no pass, and looking at both before they go."""
        sharp, new = self._sharp, copy.copy(combine)

        def ascended(t: int, clean: Any, perturbed: Any, memory: Any) -> Combined:
            self._compare(clean, perturbed)
            return combine.ascended(t, clean, perturbed, memory)

        object.__setattr__(new, "ascended", ascended)
        needs = sharp.needs
        if not (needs.look or needs.per_sample or needs.ahead or _rankwise(sharp)):
            object.__setattr__(new, "needs_clean", lambda t: True)
        return new

    @torch.no_grad()
    def _compare(self, clean: dict[str, Tensor], perturbed: dict[str, Tensor]) -> None:
        names = [name for name in clean if name in perturbed]
        g, there = ([side[name] for name in names] for side in (clean, perturbed))
        if names and not _rankwise(self._sharp):
            self._cosine = ratio(inner(g, there), norm(g) * norm(there))

    def seen(self) -> dict[str, Any]:
        """What a step that ascended has shown; nothing of others."""
        last: Last = self._sharp.last
        if last is self._last or not last.ascended:
            return {}
        gap = None if self._sharp.look is not None else last.surrogate_gap
        found = {"surrogate_gap": gap, "perturbation_norm": last.perturbation_norm, "cosine": self._cosine}
        return {name: value for name, value in found.items() if value is not None}


def _rankwise(sharp: SharpnessAware) -> bool:
    """Whether the gradient at w is a rank's own and the one at w + eps is averaged: their cosine says nothing."""
    return sharp.averaging.puts_off


def _number(value: Any) -> float:
    return float(value) if isinstance(value, Tensor) else value
