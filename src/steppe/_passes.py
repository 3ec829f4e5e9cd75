"""The passes of a step: what each is over, and what it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steppe._batch import Work
from steppe._guards import Randomness, Replay, Statistics, buffers_of
from steppe._hardest import PerSample
from steppe._parameters import bare
from steppe.ascent import Grads, Scale

if TYPE_CHECKING:
    from steppe.gradient import SharpnessAware


@dataclass(frozen=True)
class Pass:
    """A pass that was run: its loss, its gradients taken out of ``.grad``, their loss scale, and how it began."""

    loss: Tensor
    grads: Grads
    scale: Scale
    start: Replay | None = None


class Passes:
    """Runs passes over a model; a host that runs the first one itself has left a ``mark`` before it."""

    def __init__(self, sharp: SharpnessAware) -> None:
        self._sharp = sharp
        self.mark: Replay | None = None
        self.looking = False
        self.scale: Scale = 1.0

    def first(self, work: Work, ascends: bool | None) -> Pass:
        """The whole batch at w; only a direction, which ranks may keep to themselves, where it is known to ascend."""
        start = None if ascends is False else self.take_mark() or self.replay()
        sharp = self._sharp
        with sharp.averaging.first_pass() if ascends else nullcontext():
            loss = work.run()
        grads = sharp._parameters.take()
        if ascends:
            sharp.averaging.average(grads.values())
        self.scale = work.scale
        return Pass(loss, grads, work.scale, start)

    def quiet(self, work: Work) -> Pass:
        """A cheap look that leaves no trace."""
        sharp = self._sharp
        with self.no_trace():
            with sharp.averaging.first_pass():
                loss = work.run()
            grads = sharp._parameters.take()
            sharp.averaging.average(grads.values())
        self.scale = work.scale
        return Pass(loss, grads, work.scale)

    def second(self, work: Work) -> Tensor:
        """The batch at w + eps, or the samples whose loss rose most; the loss of all of it there."""
        share = self._sharp.ascent.hardest
        if share is None or share == 1 or not isinstance(work, PerSample):
            return work.run()
        with self.no_trace():
            rest, whole = work.hardest(share)
        rest.run()
        return whole

    def cheaper(self, work: Work) -> Work | None:
        """What a look of its own is over, where the ascent has one."""
        ascent = self._sharp.ascent
        if not ascent.apart:
            return None
        sliced = ascent.samples is not None or ascent.view is not None
        few = work.first(ascent.samples, ascent.view) if sliced else work
        if ascent.autocast is None:
            return few
        device = self._sharp._parameters.entries[0].param.device.type
        return few.under(lambda: torch.autocast(device, ascent.autocast))

    def take_mark(self) -> Replay | None:
        """The mark, for one use."""
        mark, self.mark = self.mark, None
        return mark

    def replay(self) -> Replay:
        """Generators and buffers as they are now."""
        return Replay(bare(self._sharp.model), self._sharp.same_dropout, self._devices())

    def _devices(self) -> set[torch.device]:
        return {e.param.device for e in self._sharp._parameters.entries}

    @contextmanager
    def no_trace(self) -> Iterator[None]:
        """A forward pass that only looks: statistics and generators are put back."""
        # One generator state and the buffers are all that it needs: no Replay, so that a tiny pass stays tiny.
        generators = Randomness(self._devices()) if self._sharp.same_dropout else None
        statistics = Statistics(buffers_of(bare(self._sharp.model)))
        self.looking = True
        try:
            yield
        finally:
            self.looking = False
            if generators is not None:
                generators.set()
            statistics.back()
