"""`sharpen`, which a script calls for its method, and what is counted of the passes that go through it."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from steppe._batch import NOTHING, batch_size
from steppe._command.averages import Averages
from steppe._nested import tensors_of
from steppe._reach import Around
from steppe._recorded import in_recording
from steppe.compare.script.source import ScriptError
from steppe.gradient import SharpnessAware
from steppe.protocol import needs_of

Build = Callable[[Any, Any, Any], Any]
"""(model, optimizer, total_steps or None) -> a method on them."""

_INSTEAD = "write loss = sharp.backward(lambda: criterion(model(x), y)) where loss.backward() stood"


class Sharpen:
    """Gives a script its method: `sharp = sharpen(model, optimizer, total_steps=1000)`.

    It goes wherever a recipe does too: `SharpTrainer(..., sharp=sharpen)`, `SharpCallback(sharpen)`.

    Args:
        build: makes the method.
        tell: told the share of the training that is done, where the script says how long it is.
        before: called when a backward begins, before anything of it runs.
        averaging: keep averages of the weights where the script says how a model is measured.
    """

    def __init__(
        self, build: Build, tell: Callable[[float], None] = lambda share: None,
        before: Callable[[], None] = lambda: None, averaging: bool = False,
    ) -> None:  # fmt: skip
        self._build, self._tell, self._before = build, tell, before
        self.sharp: Any = None
        self.model: Any = None
        self.total_steps: int | None = None
        self.calls, self.ascents, self.passes = 0, 0, 0.0
        self.losses: list[Tensor] = []
        self.clock = Stopwatch()
        self._shares = _Shares([], self._add)  # of the present backward
        self.averages: Averages | None = None
        self.measure: Callable[[], Any] | None = None
        self._averaging = averaging
        self._before_this = 0  # steps of earlier methods on the same model

    def __call__(
        self, model: Any, optimizer: Any, total_steps: int | None = None, *, measure: Callable[[], Any] | None = None
    ) -> Any:
        """The method of this run on a model and its optimizer.

        Args:
            model: the model whose loss is minimised.
            optimizer: steps it; several of one network as a list.
            total_steps: optimizer steps of the whole training, for methods whose schedule needs to know.
            measure: gives {"val": ..., "test": ...} of the model as it stands, for the base with averaged weights.

        Raises:
            ScriptError: called for another model than before, or `measure` cannot be.
        """
        total_steps = _whole(total_steps)
        _check_measure(measure, total_steps)
        if self.model is not None and model is not self.model:
            raise ScriptError(
                "sharpen was called for a second model, and a comparison is of one; expected one call (several "
                "optimizers of one network go in a list: sharpen(model, [muon, adamw]))"
            )
        self._before_this = self.steps
        sharp = self._build(model, optimizer, total_steps)
        self.model, self.sharp, self.total_steps, self.measure = model, sharp, total_steps, measure
        if self._averaging and measure is not None and total_steps:
            self.averages = Averages(model, optimizer, total_steps)
        sharp.__dict__["backward"] = self._counting(sharp, sharp.backward)
        getattr(sharp, "replays", []).append(lambda batch: self._shares.note(batch))
        if needs_of(sharp).passes and hasattr(sharp, "ascend"):
            sharp.__dict__["ascend"] = self._climbing(sharp, sharp.ascend)
        return sharp

    @property
    def steps(self) -> int:
        """Real steps of the optimizer."""
        return self._before_this + int(self.sharp.step) if self.sharp is not None else 0

    def _counting(self, sharp: Any, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(plain)
        def backward(closure: Any, batch: Any = NOTHING, *, micro_batches: Any = None, backward: Any = None) -> Tensor:
            self._begin()
            pieces = None if micro_batches is None else list(micro_batches)
            self._shares = _Shares([batch] if pieces is None else pieces, self._add)
            loss = plain(_counted(closure, self._shares), batch, micro_batches=pieces, backward=backward)
            self.losses.append(loss.detach())
            self._end(sharp)
            return loss

        return backward

    def _climbing(self, sharp: SharpnessAware, plain: Callable[..., bool]) -> Callable[..., bool]:
        @functools.wraps(plain)
        def ascend(**given: Any) -> bool:
            self._begin()
            ahead = sharp.ascent.direction.ahead and not any(p.grad is not None for p in sharp.model.parameters())
            climbs = plain(**given)
            self._add(1 if ahead else 1 + climbs)
            self._end(sharp)
            return climbs

        return ascend

    def _add(self, share: float) -> None:
        self.passes += share

    def _begin(self) -> None:
        self._before()
        self.clock.turn(self.sharp.last.ascended)

    def _end(self, sharp: Any) -> None:
        self.calls += 1
        self.ascents += bool(sharp.last.ascended)
        if self.total_steps and self.calls % max(1, self.total_steps // 50) == 0:
            self._tell(min(1.0, self.steps / self.total_steps))

    def mean_loss(self) -> float | None:
        """The mean of the losses since this was asked before; None where none went through."""
        found = [float(loss) for loss in self.losses]
        self.losses = []
        return math.fsum(found) / len(found) if found else None

    def check(self) -> None:
        """Refuse a training in which the method had no part.

        Raises:
            ScriptError: `sharpen` was not called, or nothing went through what it gave.
        """
        if self.sharp is None:
            raise ScriptError("sharpen was never called; expected sharp = sharpen(model, optimizer)")
        if not self.calls and (needs_of(self.sharp).passes or not self.steps):
            raise ScriptError(f"no backward went through what sharpen gave, so no method had an effect; {_INSTEAD}")
        if not self.steps:
            raise ScriptError(
                "the optimizer that sharpen was given never stepped; expected optimizer.step() of that very one"
            )

    @property
    def passes_per_step(self) -> float:
        """Forward and backward passes in units of the step's data; one without a backward behind it counts a third."""
        return self.passes / self.calls if self.calls else 1.0

    @property
    def ascended_share(self) -> float:
        """Share of the backwards that ran a pass at perturbed weights."""
        return self.ascents / self.calls if self.calls else 0.0


def _whole(total_steps: Any) -> Any:
    """The steps as a whole number, where half of them may be 12.5."""
    if not isinstance(total_steps, float):
        return total_steps
    if not total_steps.is_integer():
        raise ScriptError(f"total_steps={total_steps} was given; expected a whole number, as max(1, round(...)) gives")
    return int(total_steps)


def _check_measure(measure: Any, total_steps: int | None) -> None:
    if measure is not None and not callable(measure):
        raise ScriptError(
            f"measure={measure!r} was given; expected a function without arguments that gives "
            "{'val': ..., 'test': ...}"
        )
    if measure is not None and not total_steps:
        raise ScriptError("measure was given without total_steps, which averages need; give sharpen the length too")


class Stopwatch:
    """Times from one backward's begin to the next, in seconds, by whether the first of them ascended.

    Processor time of this process (wall clock where CUDA is in use): what else the machine does is not in it.
    """

    def __init__(self) -> None:
        self._times: dict[bool, list[float]] = {False: [], True: []}
        self._start: float | None = None

    def turn(self, ascended: bool) -> None:
        """A backward begins; `ascended` is said of the one before it."""
        now = time.perf_counter() if torch.cuda.is_initialized() else time.process_time()
        if self._start is not None:
            self._times[ascended].append(now - self._start)
        self._start = now

    def medians(self) -> dict[str, float | None]:
        """The median of each kind: what happens now and then, as an evaluation, is not in it."""
        names = {False: "plain", True: "ascended"}
        return {name: median(self._times[kind]) if self._times[kind] else None for kind, name in names.items()}


class _Shares:
    """Counts how much of the step's data each pass over one of its pieces is given."""

    def __init__(self, whole: Sequence[Any], add: Callable[[float], None]) -> None:
        self._whole, self._add, self._number = whole, add, 0

    def note(self, given: Any) -> None:
        """A pass over the next piece, or over a part of it."""
        piece = self._whole[self._number % len(self._whole)]
        self._number += 1
        share = 1.0 if piece is NOTHING or given is NOTHING or given is piece else _share(given, piece)
        self._add(share / len(self._whole) * (1 if torch.is_grad_enabled() else 1 / 3))


class _Counted(Around):
    """A function of the loss whose calls are counted."""

    def __init__(self, users: Any, shares: _Shares) -> None:
        super().__init__(users)
        self._shares = shares

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        if not in_recording():
            self._shares.note(arguments[-1] if arguments else NOTHING)
        return self.users(*arguments, **more)


def _counted(closure: Any, shares: _Shares) -> Any:
    """The function, counted; what is no function stays for the method to refuse."""
    if not callable(closure):
        return closure
    if isinstance(closure, functools.partial):
        return functools.partial(_Counted(closure.func, shares), *closure.args, **closure.keywords)
    return _Counted(closure, shares)


def _share(part: Any, whole: Any) -> float:
    """How much of a batch a part of it is, by the elements of the largest tensor; by samples where there is none."""
    sizes = [max((t.numel() for t in tensors_of(each)), default=0) for each in (part, whole)]
    if not all(sizes):
        sizes = [batch_size(each) for each in (part, whole)]
    return sizes[0] / sizes[1] if sizes[1] else 1.0
