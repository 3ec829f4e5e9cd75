"""The passes of one ``backward``: over the whole batch, over a few samples first, or at once at w + eps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from steppe._algebra import norm
from steppe._batch import Work
from steppe._climb import Climber
from steppe._draft import Draft, Last
from steppe._guards import Randomness, Statistics, buffers_of
from steppe._hardest import PerSample
from steppe._parameters import bare
from steppe._sync import average_earlier, refuse_unreduced
from steppe.ascent import Grads


class Passes(Climber):
    """Which passes a step needs, in which order, and what each leaves; :class:`steppe.SharpnessAware` stands on it."""

    last: Last
    looking = False  # a pass runs whose only use is the direction: not one to log

    def _run(self, work: Work, few: Work | None) -> None:
        if self._known_to_skip() and not self.combine.reuses and self.select is None:
            self.last = Last(False, work.run())
            return
        if self._parameters.sharded:
            refuse_unreduced(self.model)
        with self._parameters.aside(lambda earlier: average_earlier(self.model, earlier)):
            self.last = self._step(work, few)
        self._draft.note_handed(self._parameters)

    def _step(self, work: Work, few: Work | None) -> Last:
        if self.ascent.direction.ahead:
            return self._at_once(work)
        return self._whole_batch(work) if few is None else self._few_samples(work, few)

    def _renew(self) -> None:
        """Drop what an abandoned step left: gradients that are gone, or zeroed, belong to no step."""
        if not self._parameters.have_gradients() or (self.schedule.needs_gradient and not self._gradient_norm()):
            self._draft = Draft()
        else:
            self._draft.shrink(self._parameters)

    def _gradient_norm(self) -> float:
        return float(norm(self._parameters.handed()))

    def _whole_batch(self, work: Work) -> Last:
        if self._known_to_skip():
            loss, grads = self._plain(work)
        else:
            self._mark = self._mark or self._replay()  # a host that ran the forward already has marked before it
            loss, grads = self._look(work)
        if not self._decide(grads):
            self._skip(grads)
            return Last(False, loss)
        return self._second(work, loss, grads, grads if self._keeps_clean() else {})

    def _at_once(self, work: Work) -> Last:
        """The direction is there before any pass: the one at w + eps is the first, and the only one if d = g~."""
        direction = {} if self._known_to_skip() else self._foreseen()
        loss, grads = None, None
        if not direction or self.schedule.needs_gradient or self._keeps_clean():
            self._mark = self._mark or self._replay()
            loss, grads = work.run(), self._parameters.take()
            self._scale = work.scale
            if not self._decide(grads) or not direction:
                self._skip(grads)
                return Last(False, loss)
        self._scale = 1.0  # the direction is of a real step, without a loss scale
        kept = grads if grads is not None and self._keeps_clean() else {}
        return self._second(work, loss, direction, kept, repeats=grads is not None)

    def _look(self, work: Work) -> tuple[Tensor, Grads]:
        """A pass for the direction of ascent."""
        with self.averaging.first_pass():
            loss = work.run()
        grads, self._scale = self._parameters.take(), work.scale
        self.averaging.average(grads.values())
        self._draft.remember("select", self._selection.look(grads, self._scale))
        return loss, grads

    def _plain(self, work: Work) -> tuple[Tensor, Grads]:
        """The only pass of a step that is known not to ascend."""
        loss = work.run()
        grads, self._scale = self._parameters.take(), work.scale
        self._draft.remember("select", self._selection.look(grads, self._scale))
        return loss, grads

    def _few_samples(self, work: Work, few: Work) -> Last:
        if self._known_to_skip():
            loss, grads = self._plain(work)
            self._skip(grads)
            return Last(False, loss)
        loss, direction = self._look_at_few(few)
        clean: Grads = {}
        ascends = self._decide(direction)
        if not ascends or self._keeps_clean():
            self._mark = self._replay() if ascends else None
            loss = work.run()
            clean = self._parameters.take()
        if not ascends:
            self._skip(clean)
            return Last(False, loss)
        # With no clean pass over the whole batch, the perturbed one is the first: statistics and generators move in it.
        return self._second(work, loss, direction, clean, repeats=bool(clean))

    def _cheaper(self, work: Work) -> Work | None:
        """The pass that only looks for the direction, where it is one of its own."""
        ascent = self.ascent
        if not ascent.apart:
            return None
        sliced = ascent.samples is not None or ascent.view is not None
        few = work.first(ascent.samples, ascent.view) if sliced else work
        if ascent.autocast is None:
            return few
        device = self._parameters.entries[0].param.device.type
        return few.under(lambda: torch.autocast(device, ascent.autocast))

    def _look_at_few(self, few: Work) -> tuple[Tensor, Grads]:
        """The same over a few samples; it leaves statistics and generators as they were."""
        with self._leaving_no_trace():
            return self._look(few)

    @contextmanager
    def _leaving_no_trace(self) -> Iterator[None]:
        """A forward pass that only looks: statistics and generators are put back."""
        # One generator state and the buffers are all that it needs: no Replay, so that a tiny pass stays tiny.
        generators = Randomness(self._devices()) if self.same_dropout else None
        statistics = Statistics(buffers_of(bare(self.model)))
        self.looking = True
        try:
            yield
        finally:
            self.looking = False
            if generators is not None:
                generators.set()
            statistics.back()

    def _second(self, work: Work, loss: Tensor | None, direction: Grads, clean: Grads, repeats: bool = True) -> Last:
        with self._closing():
            self._perturb(direction, clean, repeats)
            rest, whole = self._hardest(work)
            perturbed_loss = rest.run()
            perturbed_loss = perturbed_loss if whole is None else whole
        self._finish(clean)
        return Last(True, loss, perturbed_loss, self._moved.perturbation, self._moved.displacement)

    def _hardest(self, work: Work) -> tuple[Work, Tensor | None]:
        """What the pass at w + eps is over and, where that is not everything, the loss of everything there."""
        share = self.ascent.hardest
        if share is None or share == 1 or not isinstance(work, PerSample):
            return work, None
        with self._leaving_no_trace():
            return work.hardest(share)
