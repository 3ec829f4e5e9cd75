"""Rise and gradient at w + eps, beside what the gradient at w predicts, on a few batches and over many radii."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from steppe._algebra import add_scaled_, inner, norm, ratio
from steppe._batch import Work
from steppe._bound import Bound, places
from steppe._randomness import Randomness
from steppe._state import Watch
from steppe.ascent import Gradient
from steppe.diagnostics._trials import Bench
from steppe.diagnostics._untouched import modules_of, untouched
from steppe.gradient import SharpnessAware

FAR, WHOLE = 0.3, 1.0
"""A cosine at which there is nothing more to see; a perturbation as long as the weights themselves."""

SPARSE, MANY = 2, 10
"""Of more than so many radii to choose from, every second is measured."""

Row = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class AtRadius:
    """What one radius does, the mean over the batches that were looked at.

    Attributes:
        rho: the radius.
        rise: L(w + eps) - L(w). predicted: <g, eps>, the rise of a linear loss.
        cosine: cos(g, g~). change: ||g~ - g|| / ||g||.
        moved: ||eps|| / ||w||. All of it is over the weights that the optimizer steps.
    """

    rho: float
    rise: float
    predicted: float
    cosine: float
    change: float
    moved: float


def measure(
    bench: Bench, build: Callable[[float], SharpnessAware], radii: Sequence[float], looks: int
) -> tuple[AtRadius, ...]:
    """The curve, by growing radius, up to where g~ has little to do with g or eps outgrows w."""
    measured = radii[::SPARSE] if len(radii) > MANY else radii
    with warnings.catch_warnings():  # the smallest of these radii are lost in weights of few bits, as is to be seen
        warnings.filterwarnings("ignore", "rounding ate the perturbation")
        each = [list(_along(bench, build, measured, batch)) for batch in islice(bench.stream(), looks)]
    together = zip(measured, zip(*each, strict=False), strict=False)  # as far as every batch went
    return tuple(AtRadius(rho, *(sum(v) / len(v) for v in zip(*seen, strict=True))) for rho, seen in together)


def _along(bench: Bench, build: Callable[[float], SharpnessAware], radii: Sequence[float], batch: Any) -> Iterator[Row]:
    """What a row of the curve holds, for one radius after the other, on one batch."""
    # Not those that no optimizer steps: they move along no gradient, and the method leaves them where they are.
    parameters = [p for group in bench.optimizer.param_groups for p in group["params"] if p.requires_grad]
    with untouched(bench.model, bench.optimizer, bench.loss_of):
        again, work = _beginning(bench, parameters), Work.of(bench.loss_of, batch, None, None)
        loss, clean = work.run(), _taken(parameters)
        look = build(radii[0])._making.passes.looked_at(work)
        if look is not None:
            again()
            look.run()
        direction = clean if look is None else _taken(parameters)
        for number, rho in enumerate(radii):
            with _at(build(rho), parameters, direction) as eps:
                again()
                rise = work.run() - loss
            moved = float(ratio(norm(eps), norm([p.detach() for p in parameters])))
            row = (*_compare(rise, eps, clean, _taken(parameters)), moved)
            if number and (moved > WHOLE or not all(map(math.isfinite, row))):
                return
            yield row
            if row[2] < FAR:
                return


def _beginning(bench: Bench, parameters: list[nn.Parameter]) -> Callable[[], None]:
    """A function that leads back to where the passes begin: what one of them leaves would be a rise of the next."""
    modules, generators = modules_of(bench.model, bench.loss_of), Randomness({p.device for p in parameters})
    state = Watch(lambda: modules, lambda: list(bench.model.parameters())).start()
    bound = Bound(places(bench.loss_of, ()))

    def again() -> None:
        state.back()
        bound.done()
        generators.set()

    return again


@contextmanager
def _at(sharp: SharpnessAware, parameters: list[nn.Parameter], direction: list[Tensor]) -> Iterator[list[Tensor]]:
    """In the block the weights are at w + eps, and ``.grad`` is empty; gives eps as it came out of the rounding."""
    # No momentum yet: along the gradient instead.
    if sharp.ascent.direction.ahead and not sharp._making.passes.known_ahead():
        sharp.ascent = replace(sharp.ascent, direction=Gradient())
    weights = [p.detach().clone() for p in parameters]
    for p, g in zip(parameters, direction, strict=True):
        p.grad = g.clone()
    with sharp.perturbed():
        for p in parameters:
            p.grad = None
        yield [p.detach() - w for p, w in zip(parameters, weights, strict=True)]


def _taken(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradients, taken away; zero where there is none."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return grads


def _compare(
    rise: Tensor, eps: list[Tensor], clean: list[Tensor], there: list[Tensor]
) -> tuple[float, float, float, float]:
    length = norm(clean)
    cosine = ratio(inner(clean, there), length * norm(there))
    predicted = inner(clean, eps)
    add_scaled_(there, clean, -1.0)
    return float(rise), float(predicted), float(cosine), float(ratio(norm(there), length))
