"""SharpnessAware: a sharpness-aware gradient that takes the place of ``loss.backward()``; the only stateful class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steppe._algebra import as_real, cloned, norm
from steppe._batch import NOTHING, Backward, LossOf, Work
from steppe._checkpoint import pack, unpack
from steppe._doors import Doors, perturbed_message
from steppe._draft import Draft, Last
from steppe._graphs import Tracing, in_our_words, refuse_second_order
from steppe._guards import BACKUPS, Replay
from steppe._hardest import PerSample
from steppe._lookout import Lookout, steps_inside
from steppe._optimizers import Given
from steppe._parameters import Parameters, aligned, bare, without_sync
from steppe._parts import check_choice
from steppe._passes import Passes
from steppe._perturbation import Perturbation, Rounding
from steppe._randomness import check_generators
from steppe._rates import check_rates
from steppe._rounding import ROUNDINGS
from steppe._selection import Selection
from steppe._steps import Steps
from steppe._sync import Averaging, average_earlier, refuse_uneven, refuse_unreduced
from steppe._thin import thin_
from steppe._tree import beside, renamed
from steppe._wiring import (
    CORRECTION,
    HasScale,
    check_arguments,
    check_optimizers,
    part_or_default,
    refuse_unknown,
    scale_of,
    warn_of_fresh_masks,
)
from steppe.ahead import Ahead
from steppe.ascent import Ascent, Grads, Scale
from steppe.combine import Combine, Replace
from steppe.schedule import Always, Schedule
from steppe.select import Select


class SharpnessAware:
    """The sharpness-aware gradient of a model's loss, in place of ``loss.backward()``.

    With g the gradient at w, eps the perturbation that ``ascent`` makes of it and g~ the gradient at w + eps on the
    same batch, ``combine`` makes d of g and g~; d is ADDED to ``.grad`` and the weights are back, bit for bit, before
    anything else of the loop runs. ``schedule`` says on which optimizer steps; on the others d = g (or g plus what
    ``combine`` reuses).

        loss = sharp.backward(lambda: criterion(model(x), y))     # was: loss = criterion(model(x), y); loss.backward()
        optimizer.step(); scheduler.step(); optimizer.zero_grad()

    Args:
        model: gives names, buffers and normalisation layers. It is not wrapped or changed.
        optimizer: gives the parameters, their groups (``rho``, ``perturb=False`` and ``maximize`` may be set in a
            group) and the number of real steps. A step that never happens (GradScaler) changes nothing here. A wrapper
            (Lookahead, schedule-free, accelerate's) is stepped, saved and loaded by you; the real steps are heard
            beneath it. Several optimizers of one network, ``[muon, adamw]``, are one perturbation over all of them:
            step them in any order; a round counts once, also where a GradScaler skipped some of them. Trainable
            parameters that no optimizer given steps take no part: they get the gradient of the latest pass.
            So do modules that the loss runs through and ``model`` lacks, where :meth:`backward` runs the passes.
        ascent: how to perturb; SAM's with rho = 0.05 by default.
        schedule: when; every step by default.
        combine: which gradient to hand on; g~ by default.
        select: which parameters a step is about (:class:`steppe.Sparse`): in both passes the others require no
            gradient, their ``.grad`` is None, and so no optimizer moves them. Every parameter by default.
        seed: random decisions are a function of (seed, step) alone.
        same_dropout: the second pass draws the same dropout masks as the first.
        sync: with DistributedDataParallel, whose gradient the ascent follows. "global": the average over all ranks, so
            that every rank perturbs alike. "rank": each rank its own (m-sharpness), which saves one all-reduce. A
            number: averaged over groups of so many neighbouring ranks. The last two need ``combine=Replace()``.
        rounding: how w + eps is rounded for bf16 and fp16 weights. "nearest": may lose most of eps (a warning says so
            once). "stochastic": up or down at random, from (seed, step), so that the mean displacement is eps.
        backup: where the saved weights lie while perturbed; freed after each step. "device": beside the weights, one
            buffer there. "host": in the host's memory (pinned, for CUDA), no buffer there, for two copies over the bus.
        measure: keep ||eps|| and the weights' true displacement in ``last`` (two more reads of the parameters).
        generators: generators of your own that the closure draws from (torch.Generator, numpy.random.Generator or
            RandomState, random.Random): every pass of a step draws the same from them, and the loop goes on after the
            first. The global ones of torch, Python and NumPy need no naming. They are no part of the state.

    Cost: 2 passes on a step that ascends, else 1. Buffers: one of the size of the perturbed parameters while perturbed,
    one more where ``combine`` needs g; between steps only the method's memory.

    Example:
        >>> import torch, steppe
        >>> w = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(w.weight)
        >>> sharp = steppe.SharpnessAware(w, torch.optim.SGD(w.parameters(), lr=0.1), ascent=steppe.Ascent(rho=0.5))
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> sharp.backward(lambda: w(x).square().sum() / 2)  # L = (x.w)^2/2: g = 7x, eps = x/10, g~ = 9.5x
        tensor(24.5000)
        >>> w.weight.grad
        tensor([[28.5000, 38.0000]])
        >>> w.weight.data
        tensor([[1., 1.]])
    """

    hosts_length = False  # whether the host that runs the training gave total_steps (a resumed one may be longer)

    def __init__(
        self,
        model: nn.Module,
        optimizer: Given,
        *,
        ascent: Ascent | None = None,
        schedule: Schedule | None = None,
        combine: Combine | None = None,
        select: Select | None = None,
        seed: int = 0,
        same_dropout: bool = True,
        sync: str | int = "global",
        rounding: str = "nearest",
        backup: str = "device",
        measure: bool = False,
        generators: Sequence[Any] = (),
        **unknown: Any,
    ) -> None:
        self._optimizers = check_arguments(model, optimizer, seed)
        refuse_unknown(unknown)
        check_choice("rounding", rounding, ROUNDINGS)
        check_choice("backup", backup, BACKUPS)
        self.model, self.optimizer = model, optimizer
        self.ascent = part_or_default("ascent", ascent, Ascent, Ascent)
        self.schedule = part_or_default("schedule", schedule, Schedule, Always)
        self.combine = part_or_default("combine", combine, Combine, Replace)
        self.seed, self.same_dropout, self.rounding, self.measure = seed, same_dropout, rounding, measure
        self.backup, self.generators = backup, check_generators(generators)
        self.averaging = Averaging(sync, model, self.ascent, self.schedule, self.combine)
        self.step, self.memory, self.last = 0, dict[str, Any](), Last(False)
        self._parameters = Parameters(model, self._optimizers, self.ascent.subset)
        self._selection = Selection(select, self._parameters)
        self._selection.check(model, self.ascent, self.averaging)
        self._draft, self._passes, self._tracing = Draft(), Passes(self), Tracing()
        self._doors = Doors(bare(model), self._optimizers)
        self._rounding = Rounding(rounding, measure)
        self._perturbation: Perturbation | None = None
        self._stepping: int | None = None  # the optimizer within whose step we are: its closure may call backward
        self._foreseen_later: dict[str, Any] = {}  # what a direction will remember when that step was a real one
        check_optimizers(self._optimizers, self.ascent, self.combine)
        self._steps, self._lookout = Steps(self, self._optimizers), Lookout()

    # The gradient in one call

    def backward(
        self,
        closure: LossOf,
        batch: Any = NOTHING,
        *,
        micro_batches: Sequence[Any] | None = None,
        backward: Backward | None = None,
    ) -> Tensor:
        """Add the sharpness-aware gradient to ``.grad`` and return the loss at the unperturbed weights.

        (At w + eps where that is the only pass: :class:`steppe.Momentum`, :class:`steppe.Previous`.)

        Args:
            closure: computes the scalar loss; called once per pass, with the batch if one is given. Where
                ``ascent.hardest`` is set: one loss per sample, a tensor of the batch's length, whose mean is the loss.
            batch: handed to ``closure``; needed where ``ascent.samples``, ``view`` or ``hardest`` makes it smaller
                (with the first two, the returned loss is the smaller one's unless ``combine`` needs the clean
                gradient).
            micro_batches: the batch in pieces. The result is the exact gradient of the SUM of their losses, one
                perturbation for all: divide in the closure as in any accumulation loop. Calling ``backward`` once per
                piece instead perturbs each by itself (m-sharpness; what a method remembers is then the last piece's).
            backward: the host's own backward, such as ``lambda loss: scaler.scale(loss).backward()``.

        Returns:
            The detached loss (sum over micro-batches), 0-dim.

        Raises:
            TypeError, ValueError: no scalar loss with a graph comes back, or the arguments contradict each other.
            RuntimeError: called between ``ascend`` and ``restore``.
        """
        self._refuse_while_perturbed("start another backward")
        refuse_uneven(self.model)
        self._look_again()
        kind = PerSample if self.ascent.per_sample else Work
        loss_of = self._passes.outside.watched(self._selection.rooted(closure))
        work = kind.of(loss_of, batch, micro_batches, backward, without_sync(self.model))
        look = self._passes.cheaper(work)
        self._drop_abandoned()
        may_ascend = self._ascends() is not False
        work.trace = self._tracing.trace(closure, [a for b in work.batches for a in b], self._passes.moved, may_ascend)
        if look is not None:
            look.trace = work.trace
        try:
            with self._lookout.backward(self._parameters), self._selection.held(self.step, self.seed, self.memory):
                if self._ascends() is False and not self.combine.reuses and self.select is None:
                    self.last = Last(False, self._passes.plain(work))
                else:
                    if self._parameters.sharded:
                        refuse_unreduced(self.model)
                    with self._parameters.aside(lambda earlier: average_earlier(self.model, earlier)):
                        self.last = self._gradient(work, look)
                    self._draft.note_handed(self._parameters)
        finally:
            self._passes.mark = None  # a failed pass must not lend its masks to the next step
        self._lookout.handed(self._parameters)
        if work.trace is not None and self.last.ascended == may_ascend:
            self._tracing.done(closure, may_ascend)
        if self._stepping is not None:
            self._keep_handed(self._stepping)
        loss = self.last.perturbed_loss if self.last.loss is None else self.last.loss
        assert loss is not None
        return loss

    def _gradient(self, work: Work, cheap: Work | None) -> Last:
        """One step in at most three passes, each only where a part needs it; the gradient to hand on is in ``.grad``.

        ``seen`` is what the schedule and the direction learn from (a cheap look, or the clean pass itself), ``clean``
        the whole batch at w, and the last the whole batch at w + eps.
        """
        ascends, needs_clean = self._ascends(), self.combine.needs_clean(self.step)
        ahead = self.ascent.direction.ahead
        foreseen = self._foreseen() if ahead and ascends is not False else {}
        seen = clean = None
        if ascends is not False and cheap is not None:
            seen = self._passes.quiet(cheap)
        elif ascends is not True or not foreseen or needs_clean:
            seen = clean = self._passes.first(work, ascends)
        if seen is not None:
            self._draft.remember("select", self._selection.look(seen.grads, seen.scale))
            ascends = self._decide(seen.grads, seen.scale) and self._moves(foreseen if ahead else seen.grads)
        if clean is None and (needs_clean or not ascends):
            clean = self._passes.first(work, ascends)
        if not ascends:
            assert clean is not None
            self._skip(clean.grads)
            return Last(False, clean.loss)
        kept = clean.grads if clean is not None and needs_clean else {}
        direction, scale = (foreseen, 1.0) if ahead else (seen.grads, seen.scale)  # type: ignore[union-attr]
        with self._perturbed(direction, kept, scale, None if clean is None else clean.start) as there:
            with in_our_words(perturbed=True):
                loss = self._passes.second(work, again=clean is not None)
        length, displacement = there.length, there.displacement
        del there  # and with it the saved weights, before the combination needs its room
        self._finish(kept)
        return Last(True, (clean or seen) and (clean or seen).loss, loss, length, displacement)  # type: ignore

    # The phases

    def mark(self) -> None:
        """Remember the generators and the model's state before a first pass that is not run by :meth:`backward`.

        Call it before the forward pass that :meth:`ascend`'s second pass should repeat. Without it the second pass
        draws fresh masks and begins from what the first left in buffers and attributes (right for batch norms, which
        do not read what they write; a warning names any other tensor). After it the state is the first pass's anyway.
        """
        self._passes.mark = self._passes.replay()

    def ascend(self, *, same_step: bool = False, scale: Scale | HasScale = 1.0) -> bool:
        """After an ordinary backward: perturb the weights if this step ascends.

        Where the direction needs no gradient (:class:`steppe.Momentum`, :class:`steppe.Previous`) it may also be called
        BEFORE the forward pass, with nothing in ``.grad``: the pass at w + eps is then the only one.

        Args:
            same_step: this is a further micro-batch of the optimizer step that an earlier ``ascend`` began, with its
                gradient alone in ``.grad``: the step's decision is kept.
            scale: the loss scale that ``.grad`` carries, a number or the GradScaler itself; 1 after ``unscale_``.
                Methods that remember or compare gradients, F-SAM and AE-SAM, need it. :meth:`backward` finds it by
                itself.

        Returns:
            True: ``.grad`` was put away and the weights are perturbed; run the same batch again, then :meth:`restore`.
            False: ``.grad`` already holds the gradient to hand on.

        Raises:
            RuntimeError: called twice, with nothing in ``.grad``, or with ``ascent.samples`` or ``hardest``, which are
                for :meth:`backward` with a batch.
        """
        self._refuse_while_perturbed("ascend again")
        scale = scale_of(scale)
        refuse_uneven(self.model)
        self._look_again()
        if self.select is not None:
            raise RuntimeError(
                "ascend() cannot switch parameters off in a pass that it does not run: use backward(), or select=None"
            )
        empty = not self._parameters.have_gradients()
        before = self.ascent.direction.ahead and empty
        if before and (self.combine.needs_clean(self.step) or self.schedule.needs_gradient):
            raise RuntimeError(
                f"ascend() was called before the forward pass, but {self.schedule} with {self.combine} reads the "
                "gradient at the weights; call it after the ordinary backward"
            )
        if self._passes.mark is None and self.same_dropout and not before:
            warn_of_fresh_masks(self.model)
        if self.ascent.apart or self.ascent.per_sample or self.averaging.puts_off:
            raise RuntimeError(
                "ascend() cannot slice a batch, cast or put off the averaging of a pass that it does not run: "
                "use backward(loss_of, batch), or an ascent without samples, view, autocast and hardest, and "
                "sync='global'"
            )
        if empty and not before:
            raise RuntimeError(
                "ascend() found nothing in .grad of the model's parameters; expected it after loss.backward() and "
                "before zero_grad(), on the very model that was given"
            )
        refuse_second_order(e.param.grad for e in self._parameters.entries)
        if not same_step:
            self._steps.begin()
            self._lookout.gradient(self._optimizers.name)
            self._draft = Draft()
        self._draft.radii = None
        grads, ahead, mark = self._passes.taken(), self.ascent.direction.ahead, self._passes.take_mark()
        self._passes.scale = scale
        direction = self._foreseen() if ahead else grads
        if not (self._decide(grads, scale) and self._moves(direction)):
            self._skip(grads)
            self._lookout.handed(self._parameters)
            self.last = Last(False)
            return False
        clean = grads if self.combine.needs_clean(self.step) else {}
        there = self._perturb(direction, clean, scale, None if before else mark or self._passes.replay(False))
        if not before:
            self._passes.outside.open_phase()
        self.last = Last(True, None, None, there.length, there.displacement)
        return True

    def restore(self) -> None:
        """Bring the weights back, bit for bit, and leave the combined gradient in ``.grad``."""
        if self._perturbation is None:
            raise RuntimeError(
                "restore() was called but nothing is perturbed: call it once, after ascend() returned True"
            )
        clean = self._perturbation.clean
        with self._closing():
            pass
        self._passes.outside.close_phase()
        self._finish(clean)
        self._draft.note_handed(self._parameters)
        self._lookout.handed(self._parameters)

    @contextmanager
    def perturbed(self, *, scale: Scale | HasScale | None = None) -> Iterator[None]:
        """Look at the loss at w + eps, with eps made of the present ``.grad``, whatever the schedule says.

        A direction that needs no gradient (:class:`steppe.Momentum`) is taken as it is known.
        Weights, buffers and all that a forward moves are back afterwards; ``.grad`` and the memory are not touched.

        Args:
            scale: the loss scale that ``.grad`` carries, a number or the GradScaler itself; 1 after ``unscale_``. Where
                nothing was scaled, and for methods that do not read it, none needs to be given.

        Raises:
            RuntimeError: something is perturbed already, there is no gradient, or the latest one was made under a loss
                scale that the method reads (F-SAM's average, the scope "paper") and ``scale`` is not given.
        """
        self._refuse_while_perturbed("enter perturbed()")
        scale = self._scale_in_grad() if scale is None else scale_of(scale)
        self._look_again()
        if not self._parameters.have_gradients() and not self.ascent.direction.ahead:
            raise RuntimeError(
                "perturbed() found no gradient to climb along: call backward first, and look before zero_grad()"
            )
        if self.ascent.direction.ahead:
            grads = self._foreseen()
        else:
            there = ((e.name, e.param.grad) for e in self._parameters.entries)
            grads = {name: as_real(grad.clone()) for name, grad in there if grad is not None}
            self._parameters.turn(grads)
        memory, self._passes.mark, self._draft.radii = self._draft.memory, None, None
        with self._passes.no_trace(), self._perturbed(grads, {}, scale, None):
            self._draft.memory = memory
            yield

    def _scale_in_grad(self) -> Scale:
        """The loss scale that ``.grad`` carries, where that cannot be in doubt: the host may have taken it off."""
        reads = self.ascent.reads_scale or (self.memory.get("ascent") and not self.ascent.direction.ahead)
        if reads and float(self._passes.scale) != 1:
            raise RuntimeError(
                f"perturbed() was entered after a backward under a loss scale of {float(self._passes.scale):g}, which "
                f"{self.ascent.direction!r} with scope={self.ascent.scope!r} reads; expected the scale that .grad "
                "carries now: perturbed(scale=scaler) before scaler.unscale_(optimizer), perturbed(scale=1) after it"
            )
        return 1.0

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Schedule position, seed, settings and memory: plain numbers, strings and tensors keyed by parameter name.

        Save it beside the model's and the optimizer's; ``torch.load(..., weights_only=True)`` reads it.
        """
        self._refuse_while_perturbed("save the state")
        self._look_again()
        return pack(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken: bit for bit, where the settings are the same.

        Settings are those of this object. Where one is not the state's (rho, k, p, alpha, a curve, the seed), one
        warning names it with both values: it holds from here on, exactly as if it had been a curve with a step here.

        Raises:
            ValueError: the state is of another method or kind, names parameters that the model lacks, or shapes differ.
        """
        self._refuse_while_perturbed("load a state")
        self._look_again()
        unpack(self, state)
        self._draft = Draft()

    # The present parameters and what arrives at them

    def _look_again(self) -> None:
        """Memory follows parameters that were renamed, and starts anew for those that were exchanged."""
        before = self._parameters.entries
        if names := self._parameters.look_again():
            known = {e.name for e in before}
            for held in (self, self._draft):
                held.memory = renamed(held.memory, names, known)
                if "combine" in held.memory:
                    held.memory["combine"] = self.combine.after_change(held.memory["combine"])
            self._draft.correction, self._draft.radii = renamed(self._draft.correction, names, known), None

    def _arrived(self, grads: Grads) -> Grads:
        """The gradients of a pass that was run here; refuses a pass that brought none."""
        if not grads and not self._parameters.have_others and self.select is None:
            raise RuntimeError(
                "no gradient arrived at the model's parameters; expected a function whose loss depends on the very "
                f"{type(bare(self.model)).__name__} that was given, not on a copy of it or on a detached output"
            )
        return grads

    @property
    def _reads_all(self) -> bool:
        """Whether gradients of parameters that are not perturbed are reckoned with, and not only handed on."""
        alone = isinstance(self.combine, Replace) and not self.schedule.needs_gradient
        return not alone or self.select is not None or self.averaging.puts_off

    # Decisions

    def _ascends(self) -> bool | None:
        """Whether this step ascends; None: that waits for a gradient."""
        return None if self.schedule.needs_gradient else self._decide({}, 1.0)

    def _decide(self, grads: Grads, scale: Scale) -> bool:
        if self._draft.decision is None:
            known = self.memory.get("schedule", {})
            self._draft.decision, memory = self.schedule.decide(
                self.step, self.seed, lambda: (norm(list(grads.values())) / scale) ** 2, known
            )
            self._draft.remember("schedule", memory)
        return self._draft.decision and any(rho > 0 for rho in self._radii().values())

    def _radii(self) -> dict[str, float]:
        if self._draft.radii is None:
            groups = [self.ascent.radius(self.step, g) for g in self._optimizers.param_groups]
            moved = [g.get("perturb", True) for g in self._optimizers.param_groups]
            self._draft.radii = {
                e.name: groups[e.group]
                for e in self._parameters.entries
                if e.group is not None and e.inside and moved[e.group]
            }
        return self._draft.radii

    def _moves(self, direction: Grads) -> bool:
        """Whether a direction has anything to perturb (ranks with directions of their own must agree on their passes).

        A loss that does not depend on what is perturbed has a gradient, and no perturbation.
        """
        return bool(direction) and (self.averaging.puts_off or any(name in direction for name in self._radii()))

    def _drop_abandoned(self) -> None:
        """Drop what an abandoned step left: gradients that are gone, or zeroed, belong to no step."""
        begun, here = self._steps.begin(), self._parameters.have_gradients()
        if not here:
            self._lookout.gradient(self._optimizers.name)
        if begun or not here or (self.schedule.needs_gradient and not float(norm(self._parameters.handed()))):
            self._draft = Draft()
        else:
            for which in range(self._parameters.count):
                self._draft.shrink(self._parameters, which)
        self._draft.radii = None  # a group's rho may be another since

    # Memory of directions that need no gradient of this step

    @torch.no_grad()
    def _foreseen(self) -> Grads:
        """The direction that needs no gradient of this step; empty where nothing is known yet."""
        assert isinstance(self.ascent.direction, Ahead)
        radii = self._radii()
        params: Grads = {e.name: e.param for e in self._parameters.entries if e.name in radii and e.param.requires_grad}
        return self.ascent.direction.vector(params, self._optimizers, self.memory.get("ascent", {}), self.step)

    @torch.no_grad()
    def _keep_handed(self, which: int, scale: Scale = 1.0) -> None:
        """Let the direction remember the gradient that an optimizer's step is about to take."""
        if not isinstance(self.ascent.direction, Ahead) or self._draft.decision is None:
            return
        inside = [e for e in self._parameters.entries if self._parameters.perturbable(e)]
        mine = [e for e in inside if self._parameters.owner(e) == which and e.param.grad is not None]
        grads = self._parameters.seen_by(which, mine)
        memory = self.memory.get("ascent", {})
        later = self.ascent.direction.after(grads, memory, scale)
        if self._parameters.count > 1:  # the others keep what their own steps left
            later = beside(later, memory, {e.name for e in inside if self._parameters.owner(e) != which})
        self._foreseen_later = later

    # There and back

    @torch.no_grad()
    def _perturb(self, direction: Grads, clean: Grads, scale: Scale, replay: Replay | None) -> Perturbation:
        self._parameters.drop_others()
        radii = self._radii()
        moved = {e.name: e for e in self._parameters.entries if e.name in radii and e.name in direction}
        # The ascent writes on what it is handed, so a gradient that is still needed is handed as a copy.
        handed = {k: direction[k] for k in moved}
        if clean is direction:
            handed = dict(zip(handed, cloned(list(handed.values())), strict=True))
        weights: Grads = {k: as_real(e.param) for k, e in moved.items()}
        eps, memory = self.ascent.perturbation(
            weights, handed, {k: radii[k] for k in moved}, {k: e.group or 0 for k, e in moved.items()},
            self.memory.get("ascent", {}), scale,
        )  # fmt: skip
        thin_(eps.values(), self.ascent.beta, self.seed, self.step)
        self._draft.remember("ascent", memory)
        there = Perturbation(self.model, weights, clean, replay, self.backup, self._parameters.sharded)
        self._perturbation = there
        self._rounding.mode, self._rounding.measure = self.rounding, self.measure
        try:
            self._doors.shut(self._parameters.entries)
            there.enter(eps, self._rounding, self.seed, self.step)
        except BaseException:
            self._close(broken=True)
            raise
        if clean is not direction:
            direction.clear()  # frees the buffer for the second pass
        return there

    @contextmanager
    def _perturbed(self, direction: Grads, clean: Grads, scale: Scale, replay: Replay | None) -> Iterator[Perturbation]:
        with self._closing():
            yield self._perturb(direction, clean, scale, replay)

    def _close(self, broken: bool = False) -> None:
        """The perturbation is forgotten last: an interruption in here can be followed by another call."""
        if self._perturbation is not None:
            try:
                self._perturbation.leave(broken)
            finally:
                self._doors.open()
            self._perturbation = None

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Closed at the end, also when Ctrl-C falls into the closing itself."""
        broken = True
        try:
            try:
                yield
                broken = False
            finally:
                self._close(broken)
        finally:
            self._close(broken)

    # What is handed on

    @torch.no_grad()
    def _skip(self, grads: Grads) -> None:
        self._parameters.give(self.combine.skipped(self.step, grads, self.memory.get("combine", {})))
        self._parameters.give_others()

    @torch.no_grad()
    def _finish(self, clean: Grads) -> None:
        """Hand on what ``combine`` makes of the clean gradient and the perturbed one in ``.grad``."""
        perturbed = self._parameters.take(self._reads_all)
        if clean:
            clean, perturbed = aligned(clean, perturbed)
        out = self.combine.ascended(self.step, clean, perturbed, self.memory.get("combine", {}))
        self._draft.keep(out)
        self._parameters.give(out.grads)
        self._parameters.give_others()

    # The optimizer's real steps

    def _before_step(self, which: int, args: Any, kwargs: dict[str, Any]) -> None:
        self._refuse_while_perturbed("step the optimizer")
        if self._lookout.within:
            raise RuntimeError(steps_inside(self._optimizers.steppers[which].name))
        if self._draft.correction or self.ascent.direction.ahead:
            self._look_again()
        if self._steps.comes_again(which):
            self._draft = Draft()
        if self._draft.correction:
            check_rates(self._optimizers, CORRECTION, exact=True)
        self._stepping, scale = which, self._optimizers.steppers[which].attribute("grad_scale")
        self._draft.close(self._parameters, which, scale)
        self._keep_handed(which, 1.0 if scale is None else scale)

    @property
    def _awaits_step(self) -> bool:
        return self._draft.decision is not None

    def _after_step(self, which: int, skipped: Tensor | bool) -> None:
        self._stepping, later, self._foreseen_later = None, self._foreseen_later, {}
        if bool(skipped):
            self._draft = self._draft if self._parameters.count > 1 else Draft()
            return
        draft, (first, last) = self._draft, self._steps.stepped(which)
        self._draft = Draft() if last else draft
        # A host that hands the optimizer a closure made this draft during the step.
        draft.close(self._parameters, which, None)
        draft.correct(self._parameters, which)
        if later:
            self.memory = self.memory | {"ascent": later}
        if first:
            self._lookout.heard()
            self.memory = self.memory | self._selection.learned(draft.memory, self.memory)
            self.step += 1

    def _refuse_while_perturbed(self, what: str) -> None:
        if self._perturbation is not None:
            raise RuntimeError(perturbed_message(what))

    @property
    def select(self) -> Select | None:
        """The part that says which parameters a step is about; None: all of them."""
        return self._selection.select

    @property
    def looking(self) -> bool:
        """A pass runs whose only use is the direction: not one to log."""
        return self._passes.looking

    # Copies

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles of it together with its model and optimizer."""
        self._refuse_while_perturbed("copy the object")
        return {key: value for key, value in self.__dict__.items() if key != "_steps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy hears of its own optimizer's steps, whose copy has lost all hooks."""
        self.__dict__.update(state)
        self._steps = Steps(self, self._optimizers)

    def __repr__(self) -> str:
        """The parts and the position."""
        return (
            f"SharpnessAware(ascent={self.ascent}, schedule={self.schedule}, combine={self.combine}, "
            f"{f'select={self.select}, ' if self.select else ''}seed={self.seed}, step={self.step})"
        )
