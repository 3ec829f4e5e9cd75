"""SharpnessAware: a sharpness-aware gradient that takes the place of ``loss.backward()``; the only stateful class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steppe._batch import NOTHING, Backward, LossOf, Work
from steppe._checkpoint import pack, unpack
from steppe._draft import Draft, Last
from steppe._guards import BACKUPS, Statistics, buffers_of
from steppe._hardest import PerSample
from steppe._parameters import bare, bare_optimizer, without_sync
from steppe._parts import check_choice
from steppe._passes import Passes
from steppe._rounding import ROUNDINGS
from steppe._sync import Averaging
from steppe._wiring import check_arguments, listen, part_or_default, warn_of_fresh_masks
from steppe.ahead import Ahead
from steppe.ascent import Ascent, Scale
from steppe.combine import Combine, Replace
from steppe.schedule import Always, Schedule
from steppe.select import Select


class SharpnessAware(Passes):
    """The sharpness-aware gradient of a model's loss, in place of ``loss.backward()``.

    With g the gradient at w, eps the perturbation that ``ascent`` makes of it and g~ the gradient at w + eps on the
    same batch, ``combine`` makes d of g and g~; d is ADDED to ``.grad`` and the weights are back, bit for bit, before
    anything else of the loop runs. ``schedule`` says on which optimizer steps; on the others d = g (or g plus what
    ``combine`` reuses).

        loss = sharp.backward(lambda: criterion(model(x), y))     # was: loss = criterion(model(x), y); loss.backward()
        optimizer.step(); scheduler.step(); optimizer.zero_grad()

    Args:
        model: gives names, buffers and normalisation layers. It is not wrapped or changed.
        optimizer: gives the parameters, their groups (``rho`` and ``perturb=False`` may be set in a group) and, by its
            step post-hook, the number of real steps. A step that never happens (GradScaler) changes nothing here.
            Trainable parameters that it lacks take no part: they get the gradient of the latest pass.
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

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
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
    ) -> None:
        check_arguments(model, optimizer, seed)
        check_choice("rounding", rounding, ROUNDINGS)
        check_choice("backup", backup, BACKUPS)
        self.model, self.optimizer = model, bare_optimizer(optimizer)
        self.ascent = part_or_default("ascent", ascent, Ascent, Ascent)
        self.schedule = part_or_default("schedule", schedule, Schedule, Always)
        self.combine = part_or_default("combine", combine, Combine, Replace)
        self.seed, self.same_dropout, self.rounding, self.measure = seed, same_dropout, rounding, measure
        self.backup = backup
        self.averaging = Averaging(sync, model, self.ascent, self.schedule, self.combine)
        super().__init__(select)
        self._selection.check(model, self.ascent, self.averaging)
        self.last = Last(False)
        if isinstance(self.ascent.direction, Ahead):
            self.ascent.direction.check(self.optimizer)
        listen(self, self.optimizer)

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
        kind = PerSample if self.ascent.per_sample else Work
        work = kind.of(self._selection.rooted(closure), batch, micro_batches, backward, without_sync(self.model))
        few = self._cheaper(work)
        self._renew()
        try:
            with self._selection.held(self.step, self.seed, self.memory):
                self._run(work, few)
        finally:
            self._mark = None  # a failed pass must not lend its masks to the next step
        if self._stepping:
            self._keep_handed()
        loss = self.last.perturbed_loss if self.last.loss is None else self.last.loss
        assert loss is not None
        return loss

    # The phases

    def mark(self) -> None:
        """Remember the generators and buffers before a first pass that is not run by :meth:`backward`.

        Call it before the forward pass whose masks :meth:`ascend`'s second pass should repeat. Without it the second
        pass draws fresh masks, and only normalisation layers' running statistics are held.
        """
        self._mark = self._replay()

    def ascend(self, *, same_step: bool = False, scale: Scale = 1.0) -> bool:
        """After an ordinary backward: perturb the weights if this step ascends.

        Where the direction needs no gradient (:class:`steppe.Momentum`, :class:`steppe.Previous`) it may also be called
        BEFORE the forward pass, with nothing in ``.grad``: the pass at w + eps is then the only one.

        Args:
            same_step: this is a further micro-batch of the optimizer step that an earlier ``ascend`` began, with its
                gradient alone in ``.grad``: the step's decision is kept.
            scale: the loss scale that ``.grad`` carries (``scaler.get_scale()``); methods that remember or compare
                gradients, F-SAM and AE-SAM, need it. :meth:`backward` finds it by itself.

        Returns:
            True: ``.grad`` was put away and the weights are perturbed; run the same batch again, then :meth:`restore`.
            False: ``.grad`` already holds the gradient to hand on.

        Raises:
            RuntimeError: called twice, or with ``ascent.samples`` or ``hardest``, for :meth:`backward` with a batch.
        """
        self._refuse_while_perturbed("ascend again")
        if self.select is not None:
            raise RuntimeError(
                "ascend() cannot switch parameters off in a pass that it does not run: use backward(), or select=None"
            )
        before = self.ascent.direction.ahead and not self._parameters.have_gradients()
        if before and (self._keeps_clean() or self.schedule.needs_gradient):
            raise RuntimeError(
                f"ascend() was called before the forward pass, but {self.schedule} with {self.combine} reads the "
                "gradient at the weights; call it after the ordinary backward"
            )
        if self._mark is None and self.same_dropout and not before:
            warn_of_fresh_masks(self.model)
        if self.ascent.apart or self.ascent.per_sample or self.averaging.puts_off:
            raise RuntimeError(
                "ascend() cannot slice a batch, cast or put off the averaging of a pass that it does not run: "
                "use backward(loss_of, batch), or an ascent without samples, view, autocast and hardest, and "
                "sync='global'"
            )
        self._draft, self._scale = self._draft if same_step else Draft(), scale
        grads = self._parameters.take()
        direction = self._foreseen() if self.ascent.direction.ahead else grads
        if not self._decide(grads) or not (direction or direction is grads):
            self._skip(grads)
            self.last, self._mark = Last(False), None
            return False
        try:
            self._perturb(direction, grads if self._keeps_clean() else {}, repeats=not before)
        except BaseException:
            self._close(broken=True)
            raise
        self.last = Last(True, None, None, self._moved.perturbation, self._moved.displacement)
        return True

    def restore(self) -> None:
        """Bring the weights back, bit for bit, and leave the combined gradient in ``.grad``."""
        if self._window is None:
            raise RuntimeError(
                "restore() was called but nothing is perturbed: call it once, after ascend() returned True"
            )
        clean = self._window.clean
        with self._closing():
            pass
        self._finish(clean)
        self._draft.note_handed(self._parameters)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Look at the loss at w + eps, with eps made of the present ``.grad``, whatever the schedule says.

        A direction that needs no gradient (:class:`steppe.Momentum`) is taken as it is known.
        Weights and running statistics are back afterwards; ``.grad`` and the memory are not touched.
        """
        self._refuse_while_perturbed("enter perturbed()")
        if not self._parameters.have_gradients() and not self.ascent.direction.ahead:
            raise RuntimeError(
                "perturbed() found no gradient to climb along: call backward first, and look before zero_grad()"
            )
        if self.ascent.direction.ahead:
            grads = self._foreseen()
        else:
            grads = {e.name: e.param.grad.clone() for e in self._parameters.entries if e.param.grad is not None}
        statistics, memory = Statistics(buffers_of(bare(self.model))), self._draft.memory
        self._mark = None
        try:
            with self._closing():
                self._perturb(grads, {})
                self._draft.memory = memory
                yield
        finally:
            statistics.back()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Schedule position, seed, settings and memory: plain numbers, strings and tensors keyed by parameter name.

        Save it beside the model's and the optimizer's; ``torch.load(..., weights_only=True)`` reads it.
        """
        self._refuse_while_perturbed("save the state")
        return pack(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, bit for bit; settings come from the state too.

        Raises:
            ValueError: the state is of another kind, names parameters that the model lacks, or shapes differ.
        """
        self._refuse_while_perturbed("load a state")
        unpack(self, state)
        self._draft = Draft()

    # Copies

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles of it together with its model and optimizer."""
        self._refuse_while_perturbed("copy the object")
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy hears of its own optimizer's steps, whose copy has lost all hooks."""
        self.__dict__.update(state)
        listen(self, self.optimizer)

    def __repr__(self) -> str:
        """The parts and the position."""
        return (
            f"SharpnessAware(ascent={self.ascent}, schedule={self.schedule}, combine={self.combine}, "
            f"{f'select={self.select}, ' if self.select else ''}seed={self.seed}, step={self.step})"
        )
