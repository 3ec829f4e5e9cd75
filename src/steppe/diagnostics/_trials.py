"""Short trainings at one radius after the other, each from the same start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe.diagnostics._untouched import around, untouched
from steppe.gradient import SharpnessAware

Build = Callable[..., SharpnessAware]
Start = Callable[[nn.Module, Optimizer], SharpnessAware]
LEAST = 0.02
"""Of its first loss the base must lose this share for trials to tell anything."""

MOST = 12
"""Trials at most."""


@dataclass(frozen=True)
class Trial:
    """A short training.

    Attributes:
        rho: its radius. loss: of the batches looked at, towards its end.
        kept: how far its loss fell, as a share of how far the base's did (1: as far; 0 or less: not at all).
    """

    rho: float
    loss: float
    kept: float


@dataclass(frozen=True)
class Bench:
    """A model lent out with an optimizer of its own, and what to train on."""

    model: nn.Module
    optimizer: Optimizer
    loss_of: Callable[[Any], Tensor]
    batches: Iterable[Any]

    def stream(self) -> Iterator[Any]:
        """The batches from the first, again and again."""
        return around(self.batches)

    def train(self, batches: Iterable[Any], sharp: SharpnessAware | None = None) -> None:
        """One step on each of ``batches``, by the base or with ``sharp``."""
        for batch in batches:
            self.optimizer.zero_grad()
            if sharp is None:
                self.loss_of(batch).backward()
            else:
                sharp.backward(self.loss_of, batch)
            self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, looks: int) -> float:
        """Mean loss of the first batches as things stand."""
        with untouched(self.model, self.optimizer, self.loss_of):
            # With a graph: the loss may take derivatives of its own.
            losses = [self.loss_of(batch).detach().reshape(()) for batch in islice(self.stream(), looks)]
            return float(torch.stack(losses).mean())

    def after(self, steps: int, looks: int, build: Start | None = None) -> float:
        """The loss after a short training, of which nothing else stays; infinite where it diverged.

        It is the mean of four moments towards the end: a single one may fall on a bounce of the loss. Not the losses
        of the steps: some methods know only those at w + eps, or of a few samples.
        """
        pause, stream = steps // 16, self.stream()
        with untouched(self.model, self.optimizer, self.loss_of) as copy:
            bench = replace(self, optimizer=copy)
            sharp = build(self.model, copy) if build else None
            bench.train(islice(stream, steps - 3 * pause), sharp)
            ends = [bench.loss(looks)]
            for _ in range(3):
                bench.train(islice(stream, pause), sharp)
                ends.append(bench.loss(looks))
        end = sum(ends) / len(ends)
        return end if math.isfinite(end) else math.inf


def downward(
    bench: Bench,
    build: Build,
    radii: Sequence[float],
    start: float,
    steps: int,
    looks: int,
    keep: float,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Trial, ...]:
    """A trial at ``start``, and where it does not keep enough, further ones downward until one does.

    Not upward: where a training stops learning says little of where it stops gaining (docs/rho.md). ``say`` hears what
    begins.

    Returns:
        The trials by growing radius; none where the base learned nothing.
    """
    say(f"{steps} steps of the base")
    first = bench.loss(looks)
    fell = first - bench.after(steps, looks)
    if not fell > LEAST * abs(first):
        return ()

    def tried(rho: float) -> Trial:
        say(f"{steps} steps with rho = {rho:g}")
        loss = bench.after(steps, looks, partial(build, rho=rho))
        return Trial(rho, loss, (first - loss) / fell)

    trials: list[Trial] = []
    for rho in [r for r in radii if r <= start][: -MOST - 1 : -1]:
        trials.insert(0, tried(rho))
        if trials[0].kept >= keep:
            break
    return tuple(trials)
