"""SharpnessAware: a sharpness-aware gradient that takes the place of ``loss.backward()``; the only stateful class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from steppe._backup import BACKUPS
from steppe._batch import NOTHING, Backward, LossOf, Work
from steppe._checkpoint import pack, unpack
from steppe._compiled import compiled_again, untraced
from steppe._doors import perturbed_message
from steppe._draft import Draft, Last
from steppe._elsewhere import settings_in_parts
from steppe._hardest import PerSample, per_sample
from steppe._making import Making
from steppe._optimizers import Given
from steppe._parameters import Parameters, parallel, without_sync
from steppe._parts import check_choice
from steppe._present import Now
from steppe._randomness import check_generators
from steppe._rounding import ROUNDINGS
from steppe._selection import Selection
from steppe._steps import Steps
from steppe._sync import Averaging, refuse_uneven
from steppe._wiring import HasScale, check_arguments, check_optimizers, part_or_default, refuse_unknown, scale_of
from steppe.ascent import Ascent, Scale
from steppe.combine import Combine, Replace
from steppe.protocol import Needs
from steppe.schedule import Always, Schedule
from steppe.select import Select
from steppe.views import Look


@settings_in_parts
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
        look: a cheaper pass of its own for the direction (:class:`steppe.Look`); that of the clean pass by default.
        schedule: when; every step by default.
        combine: which gradient to hand on; g~ by default.
        hardest: share of the samples, in (0, 1], that the pass at w + eps is over: those of each batch (each
            micro-batch, each rank's) whose loss rose most (ESAM), at least one. ``loss_of`` must then return one loss
            per sample, and ``backward`` needs ``(loss_of, batch)``: its parts are taken apart on the losses' device. A
            forward pass at w + eps without a graph finds the rise, with the first pass's dropout masks; the chosen
            draw their own. Cost 1 + 1/3 + hardest passes instead of 2. 1: all samples, without that forward pass.
            With ``look=Look(samples, chosen="hardest")`` they are those of the highest loss at w, which it knows.
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
            first. The global ones, and those of the model's modules, need no naming. They are no part of the state.

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
        look: Look | None = None,
        schedule: Schedule | None = None,
        combine: Combine | None = None,
        hardest: float | None = None,
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
        self.model, self.optimizer, self._wrapper = model, optimizer, parallel(model)
        self.ascent = part_or_default("ascent", ascent, Ascent, Ascent)
        self.look = look if look is None else part_or_default("look", look, Look, partial(Look, 1))
        self.schedule = part_or_default("schedule", schedule, Schedule, Always)
        self.combine = part_or_default("combine", combine, Combine, Replace)
        self.seed, self.same_dropout, self.rounding, self.measure = seed, same_dropout, rounding, measure
        self.hardest, self.backup, self.generators = hardest, backup, check_generators(generators)
        self.averaging = Averaging(sync, model, self.ascent, self.schedule, self.combine)
        self.step, self.memory, self.last = 0, dict[str, Any](), Last(False)
        self._parameters = Parameters(model, self._optimizers, self.ascent.subset)
        self._selection = Selection(select, self._parameters)
        self._selection.check(model, self.ascent, self.averaging)
        check_optimizers(self._optimizers, self.ascent, self.combine, per_sample(look, hardest))
        self._making = Making(model, self._parameters, self._selection, self.averaging)
        self._refresh()
        self._steps = Steps(self, self._optimizers)

    # The gradient in one call

    @untraced
    def backward(
        self,
        closure: LossOf,
        batch: Any = NOTHING,
        *,
        micro_batches: Sequence[Any] | None = None,
        backward: Backward | None = None,
    ) -> Tensor:
        """Add the sharpness-aware gradient to ``.grad`` and return the loss at the unperturbed weights.

        Args:
            closure: computes the scalar loss; called once per pass, with the batch if one is given. Where
                samples are chosen by it: one loss per sample, a tensor of the batch's length, whose mean is the loss.
            batch: handed to ``closure``; needed where ``look`` or ``hardest`` makes it smaller (with ``look``, the
                returned loss is the smaller one's unless ``combine`` needs the clean gradient).
            micro_batches: the batch in pieces. The result is the exact gradient of the SUM of their losses, one
                perturbation for all: divide in the closure as in any accumulation loop. Calling ``backward`` once per
                piece instead perturbs each by itself (m-sharpness; what a method remembers is then the last piece's).
            backward: the host's own backward, such as ``lambda loss: scaler.scale(loss).backward()``.

        Returns:
            The detached loss (sum over micro-batches), 0-dim; at w + eps where that pass is the only one (Momentum).

        Raises:
            TypeError, ValueError: no scalar loss with a graph comes back, or the arguments contradict each other.
            RuntimeError: called between ``ascend`` and ``restore``.
        """
        self._refuse("start another backward")
        kind = PerSample if per_sample(self.look, self.hardest) else Work
        pause, loss_of = without_sync(self._wrapper), compiled_again(closure)
        work = kind.of(loss_of, batch, micro_batches, backward, pause)
        making, begun, now = self._making, self._steps.begin(), self._now()
        if making.skips(now, closure, begun):
            self.last = making.plainly(work)
        else:
            self.memory = making.refresh(now)
            self.last = making.backward(closure, work, begun)
        return self.last.perturbed_loss if self.last.loss is None else self.last.loss  # type: ignore[return-value]

    # The phases

    @untraced
    def mark(self) -> None:
        """Remember the generators and the model's state before a first pass that is not run by :meth:`backward`.

        Call it before the forward pass that :meth:`ascend`'s second pass should repeat. Without it the second pass
        draws fresh masks and begins from what the first left in buffers and attributes (right for batch norms, which
        do not read what they write; a warning names any other tensor). After it the state is the first pass's anyway.
        """
        self._refresh()
        self._making.passes.mark = self._making.passes.replay()

    @untraced
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
            RuntimeError: called twice, with nothing in ``.grad``, or with ``look`` or ``hardest``, which are for
                :meth:`backward` with a batch; or for a further micro-batch with WSAM.
        """
        self._refuse("ascend again")
        self._refresh()  # the parameters, groups and parts may be others than at the last call
        self.last = self._making.ascend(scale_of(scale), same_step, self._steps.begin)
        return self.last.ascended

    @untraced
    def restore(self) -> None:
        """Bring the weights back, bit for bit, and leave the combined gradient in ``.grad``."""
        self._making.restore()

    @contextmanager
    def perturbed(self, *, scale: Scale | HasScale | None = None) -> Iterator[None]:
        """Look at the loss at w + eps, with eps made of the present ``.grad``, whatever the schedule says.

        A direction that needs no gradient (:class:`steppe.Momentum`) is taken as it is known.
        Weights, buffers and all that a forward moves are back afterwards; ``.grad`` and the memory are not touched.

        Args:
            scale: as :meth:`ascend`'s; not needed where nothing was scaled, and by methods that do not read it.

        Raises:
            RuntimeError: something is perturbed already, there is no gradient, or the latest came under a loss scale
                that the method reads (F-SAM, the scope "paper"), and ``scale`` is not given.
        """
        self._refuse_while_perturbed("enter perturbed()")
        self._refresh()
        with self._making.perturbed(self._making.scale_in_grad() if scale is None else scale_of(scale)):
            yield

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Schedule position, seed, settings and memory as the latest step left them: numbers, strings, tensors by name.

        Save it beside the model's and the optimizer's; ``torch.load(..., weights_only=True)`` reads it.
        """
        self._refuse_while_perturbed("save the state")
        self._refresh()
        return pack(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken: bit for bit, where the settings are the same.

        Settings are those of this object. Where one is not the state's (rho, k, p, alpha, a curve, the seed), one
        warning names it with both values: it holds from here on, exactly as if it had been a curve with a step here.

        Raises:
            ValueError: the state is of another method or kind, names parameters that the model lacks, or shapes differ.
        """
        self._refuse_while_perturbed("load a state")
        self._refresh()
        unpack(self, state)
        self._making.draft = Draft()

    def _now(self) -> Now:
        """All of the user's that a step reads."""
        return Now(
            self.ascent, self.look, self.schedule, self.combine, self.hardest, self._selection.select, self.step,
            self.seed, self.memory, self.same_dropout, self.generators, self.rounding, self.backup, self.measure,
        )  # fmt: skip

    def _refuse(self, what: str) -> None:
        """Refuse a call that makes a gradient at the wrong time."""
        self._refuse_while_perturbed(what)
        if self._wrapper is not None:
            refuse_uneven(self._wrapper)

    def _refresh(self) -> None:
        self.memory = self._making.refresh(self._now())

    def _refuse_while_perturbed(self, what: str) -> None:
        if self._making.climb.perturbation is not None:
            raise RuntimeError(perturbed_message(what))

    # The optimizer's real steps

    def _before_step(self, which: int, args: Any, kwargs: dict[str, Any]) -> None:
        self._refuse_while_perturbed("step the optimizer")
        if self._making.draft.correction or self.ascent.direction.ahead:
            self._refresh()  # what is kept of the gradients, or taken off the weights, is by name
        self._making.before_step(which, self._steps)

    @property
    def _awaits_step(self) -> bool:
        return self._making.draft.decision is not None

    def _after_step(self, which: int, skipped: Tensor | bool) -> None:
        self.memory, done = self._making.after_step(which, self.memory, bool(skipped), self._steps.stepped)
        self.step += done

    @property
    def select(self) -> Select | None:
        """The part that says which parameters a step is about; None: all of them."""
        return self._selection.select

    @property
    def needs(self) -> Needs:
        """What it needs of a host whose loop is not the user's own."""
        look, each = self.look is not None, per_sample(self.look, self.hardest)
        ahead, parts = self.ascent.direction.ahead, self.select is not None
        return Needs(passes=True, look=look, ahead=ahead, per_sample=each, parts=parts)

    @property
    def looking(self) -> bool:
        """A pass runs whose only use is the direction: not one to log."""
        return self._making.passes.looking

    @property
    def replays(self) -> list[Callable[[Any], Any]]:
        """Functions that are told the batch of each look that is replayed: a counter's, which no call or hook tells."""
        return self._making.passes.recorder.told

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
        names = ("ascent", "look", "schedule", "combine", "hardest", "select", "seed", "step")
        shown = ((name, getattr(self, name)) for name in names)
        return f"SharpnessAware({', '.join(f'{name}={value}' for name, value in shown if value is not None)})"
