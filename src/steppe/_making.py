"""How a step's gradient is made: the passes, the way to w + eps and back, and what is handed on; one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from steppe._algebra import as_real, norm, without_graph
from steppe._batch import Work
from steppe._climb import Climb
from steppe._draft import Draft, Last
from steppe._gradients import Gradients, aligned
from steppe._graphs import Trace, Tracing, refuse_second_order
from steppe._lookout import Lookout, steps_inside
from steppe._parameters import Entry, Parameters, parallel
from steppe._passes import Passes
from steppe._present import Now, Present
from steppe._rates import check_rates
from steppe._selection import Selection
from steppe._steps import Steps
from steppe._sync import Averaging, average_earlier, refuse_unreduced
from steppe._tree import renamed
from steppe._wiring import CORRECTION, check_phases
from steppe.ascent import Grads, Scale
from steppe.combine import Replace


class Making:
    """Makes the gradient of each step of what the parts at hand say, and keeps the step under construction.

    Args:
        model: as it was given, with its wrappers.
        parameters: the model's. selection: which of them a step is about. averaging: between processes.

    Attributes:
        draft: the step under construction.
    """

    def __init__(self, model: nn.Module, parameters: Parameters, selection: Selection, averaging: Averaging) -> None:
        self._model, self._parameters, self._selection = model, parameters, selection
        self._optimizers = parameters.optimizers
        self._gradients, self._present = Gradients(parameters), Present(parameters, averaging)
        self._averaging, self._alone = averaging, parallel(model) is None
        self.draft, self.lookout, self._tracing = Draft(), Lookout(), Tracing()
        self.passes = Passes(model, self._gradients, self._present, averaging, self.lookout)
        self.climb = Climb(model, self._gradients, self._present)
        self._stepping: int | None = None  # the optimizer within whose step we are: its closure may call backward
        self._seen: list[Entry] = []  # the parameters of the latest step that was looked at in full
        self._memory_ahead: dict[str, Any] = {}  # what a direction will remember when that step was a real one

    # What a call of the user's finds

    def refresh(self, now: Now) -> dict[str, Any]:
        """The memory, which follows parameters that were renamed, and starts anew for those that were exchanged."""
        before, memory = self._parameters.entries, now.memory
        if names := self._parameters.refresh():
            known = {e.name for e in before}
            memory, self.draft.memory = (self._follow(m, names, known, now) for m in (memory, self.draft.memory))
            self.draft.correction = renamed(self.draft.correction, names, known)
        self._present.begin(now if memory is now.memory else now._replace(memory=memory))
        return memory

    def _follow(self, memory: dict[str, Any], names: Any, known: set[str], now: Now) -> dict[str, Any]:
        memory = renamed(memory, names, known)
        if "combine" in memory:
            memory["combine"] = now.combine.after_change(memory["combine"])
        return memory

    def _drop_abandoned(self, begun: bool) -> None:
        """Drop what a step left whose gradients are gone, or zeroed; ``begun``: an optimizer has stepped since."""
        if begun and not self.lookout.waits:
            self.draft = Draft()
            return
        here = self._gradients.there()
        if not here:
            self.lookout.gradient(self._optimizers, self.draft.left)
        if begun or not here or (self._present.waits and not float(norm(self._gradients.handed()))):
            self.draft = Draft()
        elif self.draft.correction:
            for which in range(self._parameters.count):
                self.draft.shrink(self._gradients, which)

    # A gradient in one call

    def skips(self, now: Now, closure: Any, begun: bool) -> bool:
        """Whether a new step is known to be an ordinary one, of a closure and of parameters that are known.

        Nothing is then asked of the parameters: those that were exchanged or renamed, or have got hooks, are found by
        the next step that is not.
        """
        if begun or self.draft.left or self.lookout.waits or self._seen is not self._parameters.entries:
            return False
        self._present.begin(now)
        skips = self._present.plain and not self._present.scheduled(self.draft, {}, 1.0)
        return skips and self._tracing.knows(closure) and not self._parameters.regrouped

    def plainly(self, work: Work) -> Last:
        """Such a step's gradient, added to ``.grad``."""
        self.lookout.within = True
        try:
            loss = work.run()
        finally:
            self.lookout.within, self.passes.mark = False, None
        self.draft.left = True
        if self._parameters.rest:
            self.lookout.handed(self._parameters)
        return Last(False, loss)

    def backward(self, closure: Any, work: Work, begun: bool) -> Last:
        """Add the gradient to ``.grad``: plainly, where that is known to be all, else by :meth:`_gradient`.

        Args:
            closure: as it was given.
            work: what is to be run of it.
            begun: whether the round before had begun to step.
        """
        if begun or self.draft.left or self.lookout.waits:
            self._drop_abandoned(begun)
        try:
            last = self._backward(closure, work)
        except BaseException:
            if not self.draft.left:
                self.draft = Draft()
            raise
        self.draft.left, self._seen = True, self._parameters.entries
        return last

    def _backward(self, closure: Any, work: Work) -> Last:
        now = self._present.now
        if now.select is not None:
            work.loss_of = self._selection.rooted(work.loss_of)
        self.passes.inputs.of(closure, work.batches)
        ascends = self._present.ascends(self.draft)
        may_ascend = ascends is not False
        if not self._tracing.knows(closure, may_ascend):
            work.trace = Trace(closure, [a for batch in work.batches for a in batch], self.passes.moved())
        try:
            self.lookout.begin(self._parameters, closure)
            with self._selection.held(now.step, now.seed, now.memory):
                if may_ascend or now.combine.reuses or now.select is not None:
                    with self._beside_earlier():
                        heeded = self._gradients.clearing.heeded(work.loss_of)
                        work.loss_of = self.passes.outside.watched(heeded, self.passes.inputs, now.same_dropout)
                        last = self._gradient(work, self.passes.looked_at(work), ascends)
                    self.draft.note_handed(self._gradients)
                else:
                    last = Last(False, self.passes.plain(work))
        finally:
            self.lookout.end()
            self.passes.over()
        self.lookout.handed(self._parameters)
        if work.trace is not None and last.ascended == may_ascend:
            self._tracing.done(closure, may_ascend)
        if self._stepping is not None:
            self._keep_handed(self._stepping)
        return last

    def _beside_earlier(self) -> AbstractContextManager[None]:
        """What is made within it is added to what earlier micro-batches left."""
        if self._parameters.sharded:
            refuse_unreduced(self._model)
        return self._gradients.aside(lambda earlier: average_earlier(self._model, earlier))

    def _gradient(self, work: Work, look: Work | None, ascends: bool | None) -> Last:
        """One step in at most three passes, each only where a part needs it; the gradient to hand on is in ``.grad``.

        ``seen`` is what the schedule and the direction learn from (a look, or the clean pass itself), ``clean``
        the whole batch at w, and the last the whole batch at w + eps.
        """
        present, draft = self._present, self.draft
        ahead, needs_clean = present.ahead, present.needs_clean
        vector = present.known_ahead() if ahead and ascends is not False else {}
        seen = clean = None
        if ascends is not False and look is not None:
            seen = self.passes.look(look, stays=not needs_clean)
        elif ascends is not True or not vector or needs_clean:
            seen = clean = self.passes.first(work, ascends)
        if seen is not None:
            draft.remember("select", self._selection.norms_of(seen.grads, seen.scale))
            decided = present.decide(draft, seen.grads, seen.scale) if ascends is None else ascends
            ascends = decided and present.moves(vector if ahead else seen.grads)
        if clean is None and (needs_clean or not ascends):
            if seen is not None and seen.start is not None:
                seen.start.again()  # as if the look had not been
            clean = self.passes.first(work, ascends)
        if not ascends:
            assert clean is not None
            self._skip(clean.grads)
            return Last(False, clean.loss)
        kept = clean.grads if clean is not None and needs_clean else {}
        along = (vector, 1.0, None) if ahead else self.passes.direction(seen)  # type: ignore[arg-type]
        first = clean or seen
        start = None if first is None else first.start
        with self.climb.closing():
            there = self.climb.up(*along, kept, start, draft)
            loss = self.passes.second(work, again=start is not None)
        length, displacement = there.length, there.displacement
        del there  # and with it the saved weights, before the combination needs its room
        self._finish(kept)
        return Last(True, self.passes.shown(first, loss), loss, length, displacement)

    @without_graph
    def _skip(self, grads: Grads) -> None:
        """Hand on what ``combine`` makes of the gradient at w alone."""
        now = self._present.now
        self._gradients.give(now.combine.skipped(now.step, grads, now.known("combine")))
        self._gradients.give_others()

    def _finish(self, clean: Grads) -> None:
        """Hand on what ``combine`` makes of the clean gradient and the perturbed one in ``.grad``."""
        if clean or not self._alone or type(self._present.now.combine) is not Replace:  # else it lies there already
            self._combine(clean)

    @without_graph
    def _combine(self, clean: Grads) -> None:
        now = self._present.now
        perturbed = self._gradients.take(self._present.reads_all)
        if clean:
            clean, perturbed = aligned(clean, perturbed)
        out = now.combine.ascended(now.step, clean, perturbed, now.known("combine"))
        self.draft.keep(out)
        self._gradients.give(out.grads)
        self._gradients.give_others()

    # The phases, where a host runs the passes

    def ascend(self, scale: Scale, same_step: bool, begin: Callable[[], bool]) -> Last:
        """After an ordinary backward, or before it: perturb the weights if this step ascends."""
        present, empty, marked = self._present, not self._gradients.there(), self.passes.mark is not None
        ahead, corrects = present.ahead, same_step and bool(self.draft.correction)
        check_phases(present.now, self._averaging, self._model, empty, marked, corrects)
        refuse_second_order(p.grad for p in self._parameters.all)
        if not same_step:
            begin()
            self.lookout.gradient(self._optimizers, self.draft.left)
            self.draft = Draft()
        grads, mark = self.passes.taken(), self.passes.take_mark()
        self.passes.scale = scale
        direction = present.known_ahead() if ahead else grads
        self.draft.left = True
        if not (present.decide(self.draft, grads, scale) and present.moves(direction)):
            self._skip(grads)
            self.lookout.handed(self._parameters)
            return Last(False)
        clean, before = grads if present.needs_clean else {}, ahead and empty
        replay = None if before else mark or self.passes.replay(False)
        there = self.climb.up(direction, scale, None, clean, replay, self.draft)
        if not before:
            self.passes.outside.open_phase(lambda: self.climb.perturbation is not None)
        return Last(True, None, None, there.length, there.displacement)

    def restore(self) -> None:
        """The weights back, and the combined gradient in ``.grad``."""
        if self.climb.perturbation is None:
            raise RuntimeError(
                "restore() was called but nothing is perturbed: call it once, after ascend() returned True"
            )
        clean = self.climb.perturbation.clean
        with self.climb.closing():
            pass
        self.passes.outside.close_phase()
        self._finish(clean)
        self.draft.note_handed(self._gradients)
        self.lookout.handed(self._parameters)

    @contextmanager
    def perturbed(self, scale: Scale) -> Iterator[None]:
        """The weights at w + eps, whatever the schedule says, and nothing kept of it."""
        ahead, self.passes.mark = self._present.ahead, None
        if not self._gradients.there() and not ahead:
            raise RuntimeError(
                "perturbed() found no gradient to climb along: call backward first, and look before zero_grad()"
            )
        if ahead:
            grads = self._present.known_ahead()
        else:
            there = ((e.name, e.param.grad) for e in self._parameters.entries)
            grads = {name: as_real(grad.clone()) for name, grad in there if grad is not None}
            self._gradients.turn(grads)
        with self.passes.no_trace(), self.climb.closing():
            self.climb.up(grads, scale, None, {}, None, Draft())
            yield

    def scale_in_grad(self) -> Scale:
        """The loss scale that ``.grad`` carries, where that cannot be in doubt: the host may have taken it off."""
        ascent, scale = self._present.now.ascent, self.passes.scale
        kept = self._present.now.known("ascent") and not self._present.ahead
        if (ascent.reads_scale or kept) and float(scale) != 1:
            raise RuntimeError(
                f"perturbed() was entered after a backward under a loss scale of {float(scale):g}, which "
                f"{ascent.direction!r} with scope={ascent.scope!r} reads; expected the scale that .grad "
                "carries now: perturbed(scale=scaler) before scaler.unscale_(optimizer), perturbed(scale=1) after it"
            )
        return 1.0

    # The optimizers' steps

    def before_step(self, which: int, steps: Steps) -> None:
        """An optimizer is about to step: a step of the method's own, or of nobody's where it comes again in a round."""
        if self.lookout.within:
            raise RuntimeError(steps_inside(self._optimizers.steppers[which].name))
        if steps.comes_again(which):
            self.draft = Draft()
        self._stepping = which
        if self.draft.correction or self._present.ahead:
            self._keep_taken(which)

    def _keep_taken(self, which: int) -> None:
        """What is kept of the gradient that an optimizer's step is about to take, or stays in proportion to it."""
        if self.draft.correction:
            check_rates(self._optimizers, CORRECTION, exact=True)
        scale = self._optimizers.steppers[which].attribute("grad_scale")
        self.draft.close(self._gradients, which, scale)
        self._keep_handed(which, 1.0 if scale is None else scale)

    def _keep_handed(self, which: int, scale: Scale = 1.0) -> None:
        """Let the direction remember the gradient that an optimizer's step is about to take."""
        if self._present.ahead and self.draft.decision is not None:
            self._memory_ahead = self._present.after(self._gradients, which, scale)

    def after_step(
        self, which: int, memory: dict[str, Any], skipped: bool, stepped: Callable[[int], tuple[bool, bool]]
    ) -> tuple[dict[str, Any], bool]:
        """It has stepped, or skipped; ``stepped`` tells whether it was the first of its round, and the last.

        Returns:
            The memory from now on, and whether a step of the method is done.
        """
        self._stepping, later, self._memory_ahead = None, self._memory_ahead, {}
        if skipped:
            self.draft = self.draft if self._parameters.count > 1 else Draft()
            return memory, False
        draft, (first, last) = self.draft, stepped(which)
        self.draft = Draft() if last else draft
        if draft.correction:
            # A host that hands the optimizer a closure made this draft during the step.
            draft.close(self._gradients, which, None)
            draft.correct(self._gradients, which)
        memory = memory | {"ascent": later} if later else memory
        if first:
            self.lookout.heard()
            memory = memory | self._selection.learned(draft.memory, memory) if draft.memory else memory
        return memory, first
