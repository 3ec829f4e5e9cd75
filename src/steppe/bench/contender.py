"""One way to take a training step: the bare optimizer, a method of steppe, or any other code with the same parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steppe._batch import batch_size
from steppe._command.choices import Choice
from steppe._recorded import EAGER, in_recording
from steppe.bench.subject import Problem
from steppe.protocol import needs_of

STEPS = 1000
"""Length of the training that schedules are made for and shares are taken of."""

LR = 1e-3

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=LR, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=LR),
}


class Loss:
    """The loss of a problem, which counts the examples that go through it."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._whole, self._seen = problem, batch_size(problem.batch), 0

    def __call__(self, batch: Any) -> Tensor:
        """The loss of a batch, whole or in part."""
        if not in_recording():
            self.replayed(batch)
        return self._problem.loss_of(self._problem.model, batch)

    def replayed(self, batch: Any) -> None:
        """Count a batch that goes through, also one that a recorded look goes through without a call."""
        self._seen += batch_size(batch)

    def passes(self) -> float:
        """Passes over the whole batch since the last call."""
        seen, self._seen = self._seen, 0
        return seen / self._whole


@dataclass
class Contender:
    """A way to train that can be timed step by step.

    Attributes:
        label: what tables call it.
        step: one training step on a batch.
        loss: what `step` calls for the loss.
        ascended: whether the latest step ran a pass at perturbed weights.
        place: go to the next step that ascends (True) or does not, without a pass.
        share: of the steps that ascend; None where only the steps themselves tell.
        stated: parameter-sized buffers beside the base's, in words; "" where nobody states any.
        early: so many steps that ascend are unlike those after them.
    """

    label: str
    step: Callable[[Any], Any]
    loss: Loss
    ascended: Callable[[], bool] = lambda: False
    place: Callable[[bool], None] = lambda wanted: None
    share: float | None = 0.0
    stated: str = ""
    early: int = 0
    passes: dict[bool, float] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[bool, ...]:
        """The kinds of step there are, those that ascend first: the others may live on what they left."""
        return {0.0: (False,), 1.0: (True,)}.get(-1.0 if self.share is None else self.share, (True, False))

    def settle(self, batch: Any) -> None:
        """Take the steps that are unlike the later ones."""
        for _ in range(self.early):
            self.place(True)
            self.step(batch)

    def take(self, batch: Any, row: int = 1) -> None:
        """Steps in a row, all of the first's kind where a schedule is known, and the passes of the last counted."""
        for number in range(row):
            if number:
                self.place(self.ascended())
            self.loss.passes()
            self.step(batch)
        self.passes[self.ascended()] = self.loss.passes()


def base(problem: Problem, optimizer: str) -> Contender:
    """The bare optimizer."""
    loss, bare = Loss(problem), OPTIMIZERS[optimizer](_trainable(problem))

    def step(batch: Any) -> None:
        loss(batch).backward()
        bare.step()
        bare.zero_grad()

    return Contender("base", step, loss)


def ours(problem: Problem, choice: Choice, optimizer: str) -> Contender:
    """A method of steppe, on the same optimizer or on the one that its paper brings along."""
    method = choice.method
    loss, weights = Loss(problem), _trainable(problem)
    bare = choice.own_optimizer(weights) or OPTIMIZERS[optimizer](weights)
    sharp = choice.build(problem.model, bare, value=None, seed=0, total_steps=STEPS)
    choice.with_the_mean("the benchmark", sharp)
    getattr(sharp, "replays", []).append(loss.replayed)

    def step(batch: Any) -> None:
        sharp.backward(loss, batch)
        bare.step()
        bare.zero_grad()

    return Contender(
        choice.label,
        step,
        loss,
        lambda: bool(getattr(getattr(sharp, "last", None), "ascended", False)),
        lambda wanted: _place(sharp, wanted),
        _share(sharp),
        method.buffers,
        EAGER + 1 if getattr(getattr(sharp, "look", None), "cuda_graph", False) else 0,
    )


def _trainable(problem: Problem) -> list[Tensor]:
    return [p for p in problem.model.parameters() if p.requires_grad]


def _known(sharp: Any) -> bool:
    return hasattr(sharp, "schedule") and needs_of(sharp).passes and not sharp.schedule.needs_gradient


def _decides(sharp: Any, t: int) -> bool:
    decision: bool = sharp.schedule.decide(t, sharp.seed, None, {})[0]
    return decision


def _share(sharp: Any) -> float | None:
    if not needs_of(sharp).passes:
        return 0.0
    return sum(_decides(sharp, t) for t in range(STEPS)) / STEPS if _known(sharp) else None


def _place(sharp: Any, wanted: bool) -> None:
    """Go on, or from the start again, to the next step of the wanted kind."""
    if _known(sharp):
        after = (t % STEPS for t in range(sharp.step, sharp.step + STEPS))
        sharp.step = next((t for t in after if _decides(sharp, t) is wanted), sharp.step)
