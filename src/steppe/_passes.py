"""The passes of a step: what each is over, and what it leaves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from steppe._algebra import joined, norm_each, nothing_unless_
from steppe._anew import warn_of_what_comes_anew
from steppe._batch import Work
from steppe._bound import Bound
from steppe._gradients import Gradients
from steppe._graphs import raise_in_our_words
from steppe._guards import Replay, forget_derived
from steppe._hardest import PerSample, by_loss
from steppe._inputs import Inputs, Written
from steppe._lookout import Lookout
from steppe._outside import Held, Outside
from steppe._parameters import bare
from steppe._present import Present
from steppe._randomness import Randomness, of_numpy
from steppe._recorded import Recorder
from steppe._state import State, Watch
from steppe._sync import Averaging
from steppe.ascent import Grads, Scale

_DEVICE = attrgetter("device")
_NONE: Set[str] = frozenset()


@dataclass(frozen=True)
class Pass:
    """A pass that was run: its loss, its gradients taken out of ``.grad``, their loss scale, and how it began."""

    loss: Tensor
    grads: Grads
    scale: Scale
    start: Replay | None = None


class Passes:
    """Runs passes over a model; a host that runs the first one itself has left a ``mark`` before it.

    Args:
        model: as it was given, with its wrappers.
        gradients: where a pass leaves them. present: what the step is made with.
        averaging: between processes. lookout: watches the optimizers.
    """

    def __init__(
        self, model: nn.Module, gradients: Gradients, present: Present, averaging: Averaging, lookout: Lookout
    ) -> None:
        self._model, self._gradients, self._present = bare(model), gradients, present
        self._averaging, self._lookout = averaging, lookout
        self.mark: Replay | None = None
        self.looking = self._told = False
        self.scale: Scale = 1.0
        self.watch = Watch(self.roots, self.moved, self.sharded)
        self._silent, self._roots = _NONE, [self._model]
        self._losses: list[Tensor] = []  # of every sample at w, where a look has chosen by them
        self._drawn: tuple[Randomness, Any] | None = None  # some reading, and what generators it is of
        self.outside, self.inputs = Outside(model, gradients, self.moved), Inputs()
        self.recorder = Recorder(model, gradients, self.watch, self.draws)

    def first(self, work: Work, ascends: bool | None) -> Pass:
        """The whole batch at w; only a direction, which ranks may keep to themselves, where it is known to ascend."""
        start = None if ascends is False else self.take_mark() or self.replay()
        if start is None:
            loss = self.plain(work)
        else:
            try:
                self.outside.open_first()
                loss = self._puts_off(work) if ascends and self._averaging.puts_off else self.plain(work)
            finally:
                joined = self.outside.close_first()
            start.also += joined
        grads = self._arrived(self.taken())
        if ascends and self._averaging.puts_off:
            self._averaging.average(grads.values())
        self.scale = work.scale
        return Pass(loss, grads, work.scale, start)

    def _puts_off(self, work: Work) -> Tensor:
        """A pass whose gradient is only a direction, which ranks do not average as any other."""
        with self._averaging.first_pass():
            return self.plain(work)

    def look(self, work: Work, stays: bool = False) -> Pass:
        """A pass that only looks for the direction, and leaves no trace.

        ``stays``: the forward pass that chooses samples by their losses, the only one over all at w, leaves its own.
        """
        if by_loss(self._present.now.look):
            return self._look_at_the_hardest(work, stays)
        with self.no_trace():
            return self._glance(work)

    def _glance(self, work: Work) -> Pass:
        look = self._present.now.look
        run = self.recorder.run if look is not None and look.cuda_graph else Work.run
        enough = enough_samples(f"a look at samples={getattr(look, 'samples', None)!r}")
        try:
            self.outside.open_first()
            with self._lookout.one_pass(), self._averaging.first_pass(), enough:
                loss = run(work)
        finally:
            for module in self.outside.close_first():
                module.done()
        grads = self._arrived(self._gradients.take(self._present.reads_all))
        self._averaging.average(grads.values())
        self.scale = work.scale
        return Pass(loss, grads, work.scale)

    def direction(self, seen: Pass) -> tuple[Grads, Scale, list[Tensor] | None]:
        """What a pass found, its loss scale and, of a look, the norm of each gradient that is perturbed along.

        Nothing of a look that is not finite (a mean over no label). But what only a loss scale made overflow stays: the
        scaler has to see it.
        """
        if self._present.now.look is None:
            return seen.grads, seen.scale, None
        radii = self._present.moved().radii
        grads = [g for name, g in seen.grads.items() if name in radii]
        norms = norm_each(grads)
        total = joined(norms)
        keep: Tensor | bool = True
        if not (total.is_cpu and math.isfinite(total)):  # there nobody waits for it
            keep = total.isfinite() | (~seen.loss.isnan() & (seen.scale > 1)).to(total.device)
            nothing_unless_(keep, grads)
        if not self._told:
            self._told = True
            warn_of_no_look(total, keep)
        return seen.grads, seen.scale, norms

    def shown(self, first: Pass | None, there: Tensor | None) -> Tensor | None:
        """The loss at w: a look's, which leaves no trace, is that of the next pass where it is not finite."""
        if first is None or first.start is not None or there is None:
            return None if first is None else first.loss
        if first.loss.is_cpu and there.is_cpu and first.loss.dtype is there.dtype:  # there nobody waits for it
            return first.loss if math.isfinite(first.loss) else there
        return torch.where(first.loss.isfinite(), first.loss, there)

    def _look_at_the_hardest(self, work: Work, stays: bool) -> Pass:
        assert isinstance(work, PerSample)
        with nullcontext() if stays else self.no_trace():
            start = (self.take_mark() if stays else None) or self.replay()
            try:
                self.outside.open_first()
                losses, whole = work.seen()
            finally:
                joined = self.outside.close_first()
            start.also += joined
            forget_derived()
            start.again(once=False)
            try:
                found = self._glance(self._hardest(work, losses))
            finally:
                start.done()
                forget_derived()
        return replace(found, loss=whole, start=start if stays else None)

    def _hardest(self, work: PerSample, losses: list[Tensor]) -> Work:
        """The samples of the highest of these losses, of which every one is noted for the pass at w + eps."""
        look, falls = self._present.now.look, self._gradients.parameters.optimizers.climbing()[0]
        assert look is not None and look.samples is not None
        self._losses = losses
        few = work.taken(losses, look.samples, falls)
        return few if look.view is None else few.first(None, look.view)

    def second(self, work: Work, again: bool) -> Tensor | None:
        """The batch at w + eps, or the hardest samples; the loss of all of it there, None where that is not known.

        ``again``: state has moved in a pass over the batch before.
        """
        if work.trace is not None and not self._present.ahead:
            now = self._present.now
            warn_of_what_comes_anew(self.inputs.function, now.generators if now.same_dropout else None)
        try:
            if again and self.outside.met:
                with self.outside.second():
                    loss = self._second(work)
            else:
                loss = self._second(work)
        except RuntimeError as error:
            raise_in_our_words(error, perturbed=True)
            raise
        if not again:
            self._refuse_nothing(self._gradients.anywhere())
        return loss

    def _second(self, work: Work) -> Tensor | None:
        share = self._present.now.hardest
        if share is None or share == 1 or not isinstance(work, PerSample):
            return self.plain(work)
        rest, whole = self._second_of(work, share)
        with enough_samples(f"hardest={share!r}"):
            self.plain(rest)
        return whole

    def _second_of(self, work: PerSample, share: float) -> tuple[PerSample, Tensor | None]:
        falls = self._gradients.parameters.optimizers.climbing()[0]
        if by_loss(self._present.now.look):
            losses, self._losses = self._losses, []
            return work.taken(losses, share, falls), None
        with self.no_trace():
            losses, whole = work.seen()
        return work.taken(work.rises(losses), share, falls), whole  # of the batch as it was, if the loss writes it

    def plain(self, work: Work) -> Tensor:
        """A pass that leaves its gradients where they are."""
        if not self._lookout.hooked:
            return work.run()
        with self._lookout.one_pass():
            return work.run()

    def looked_at(self, work: Work) -> Work | None:
        """What a look is over, where there is one."""
        look = self._present.now.look
        if look is None:
            return None
        if (look.samples is not None or look.view is not None or look.cuda_graph) and not by_loss(look):
            work = work.first(look.samples, look.view)
        if look.autocast is None:
            return work
        device = self._gradients.parameters.all[0].device.type
        return work.under(lambda: torch.autocast(device, look.autocast))

    def take_mark(self) -> Replay | None:
        """The mark, for one use."""
        mark, self.mark = self.mark, None
        return mark

    def taken(self) -> Grads:
        """The gradients of a pass over the whole batch, taken out of ``.grad``; notes which parameters had none."""
        present = self._present
        grads = self._gradients.take(present.reads_all)
        radii = present.moved().radii
        missing = len(grads) < len(radii) and present.now.select is None
        self._silent = radii.keys() - grads.keys() if missing else _NONE
        return grads

    def _arrived(self, grads: Grads) -> Grads:
        """The gradients of a pass that was run here; refuses a pass that brought none."""
        self._refuse_nothing(bool(grads) or self._gradients.have_others)
        return grads

    def _refuse_nothing(self, arrived: bool) -> None:
        if self._present.now.select is None and not arrived:
            raise RuntimeError(
                "no gradient arrived at the model's parameters; expected a function whose loss depends on the very "
                f"{type(self._model).__name__} that was given, not on a copy of it or on a detached output"
            )

    def replay(self, begun: bool = True) -> Replay:
        """Generators and state as they are now; ``begun=False``: as the first pass, already over, left them."""
        replay = Replay(self.watch, self.draws, begun)
        replay.also = [*self.outside.held(begun), *self.inputs.held()]
        return replay

    def draws(self) -> Randomness:
        """Where the generators stand."""
        now = self._present.now
        devices = set(map(_DEVICE, self._gradients.parameters.all)) if now.same_dropout else set()
        drawn = devices, self.watch.named(now.generators, now.same_dropout), now.same_dropout, of_numpy()
        if self._drawn is None or self._drawn[1] != drawn:
            self._drawn = Randomness(*drawn[:3]), drawn
            return self._drawn[0]
        return self._drawn[0].now()

    def known_ahead(self) -> Grads:
        """The direction that is known before any pass; empty where none is."""
        return self._present.known_ahead()

    def over(self) -> None:
        """The passes of a backward are over."""
        self.outside.over()
        self.inputs.over()
        self.mark = None  # a failed pass must not lend its masks to the next step

    # What the watch asks

    def roots(self) -> list[nn.Module]:
        """The modules whose state a pass may move."""
        return self._roots

    def moved(self) -> list[Tensor]:
        """The parameters that the second pass sees elsewhere on purpose; all others are state."""
        return self._present.trained(self._silent)

    def sharded(self) -> bool:
        """Whether parameters are spread over processes."""
        return self._gradients.parameters.sharded

    @contextmanager
    def no_trace(self) -> Iterator[None]:
        """A forward pass that only looks: state and generators are put back."""
        before = self._here()
        self.looking = True
        try:
            yield
        finally:
            self.looking = False
            forget_derived()  # what a pass without a graph, or with one that is used up, has computed
            self._there(*before)

    def __getstate__(self) -> dict[str, Any]:
        """A mark is of these very generators."""
        return vars(self) | {"mark": None, "_drawn": None, "_losses": []}

    def _here(self) -> tuple[Randomness, State, list[Held | Written | Bound]]:
        return self.draws(), self.watch.start(), [*self.outside.held(), *self.inputs.held()]

    def _there(self, generators: Randomness, state: State, outside: list[Held | Written | Bound]) -> None:
        generators.set()
        state.back()
        for held in outside:
            held.done()


def warn_of_no_look(total: Tensor, finite: Tensor | bool) -> None:
    """Say it where a first look shows no direction."""
    if not (finite and total):
        warnings.warn(
            f"the look's gradient is {'zero' if finite else 'NaN or inf'}, so that this step does not ascend; expected "
            "a loss that its samples alone have (no std over one of them, no mean over no label, no negatives that are "
            "the batch's other samples): give the look more samples",
            stacklevel=7,
        )


@contextmanager
def enough_samples(what: str) -> Iterator[None]:
    """A part of the batch may be too small for batch normalisation: said in the setting's own word."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"{what} leaves one sample, of which batch normalisation cannot take a variance in training; expected two "
            "samples or more, or a smaller view of the whole batch: Look(view=...)"
        ) from error
