"""How far the loss rises within a radius: along the gradient of m samples (worst case), and on average."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steppe._parts import check, check_count
from steppe._samples import Take, read
from steppe.ascent import Ascent, Gradient
from steppe.diagnostics._picture import new_axes
from steppe.diagnostics._surface import LossOf, Surface, Weigh
from steppe.gradient import SharpnessAware

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RADII = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Those looked at where none are given."""


@dataclass(frozen=True)
class Rise:
    """What one radius does to the loss.

    Attributes:
        rho: the radius.
        worst: the highest rise that the ascent found, the mean over the groups of m samples (a lower bound).
        average: the mean rise over directions drawn at random. error: its standard error; None of a single draw.
    """

    rho: float
    worst: float
    average: float
    error: float | None


@dataclass(frozen=True)
class Sharpness:
    """What :func:`m_sharpness` found.

    Attributes:
        m: samples of the largest group, which may be fewer than were asked for; None: all of them are one.
        groups: how many there were.
        loss: the mean loss at the weights themselves.
        rises: by growing radius.
    """

    m: int | None
    groups: int
    loss: float
    rises: tuple[Rise, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts, for JSON."""
        return asdict(self)

    def plot(self, axes: Axes | None = None, label: str | None = None) -> Axes:
        """Worst and average rise over the radius, on logarithmic scales. Needs matplotlib (``steppe[study]``)."""
        axes = new_axes() if axes is None else axes
        radii = [rise.rho for rise in self.rises]
        worst = f"{label + ', ' if label else ''}worst{'' if self.m is None else f' of {self.m}'}"
        (line,) = axes.plot(radii, [rise.worst for rise in self.rises], "o-", markersize=3, label=worst)
        average = f"{label + ', ' if label else ''}on average"
        axes.plot(radii, [r.average for r in self.rises], "o--", markersize=3, color=line.get_color(), label=average)
        axes.set(xscale="log", xlabel="rho", ylabel="rise of the loss")
        axes.set_yscale("symlog", linthresh=1e-4)  # an average rise may be negative
        axes.legend()
        return axes


def m_sharpness(
    model: nn.Module,
    loss_of: LossOf,
    batches: Iterable[Any],
    radii: Sequence[float] = RADII,
    *,
    m: int | None = None,
    ascent: Ascent | None = None,
    climbs: int = 1,
    draws: int = 4,
    seed: int = 0,
    weigh: Weigh | None = None,
) -> Sharpness:
    """The rise of the loss within each radius, in the worst direction of m samples and on average.

    Worst: the mean over groups G of m samples of max over k of L_G(w + eps_k) - L_G(w), with eps_1 SAM's perturbation
    by the gradient of G and eps_k+1 the one by its gradient at w + eps_k (each maximises the loss as it looks linearly
    from there: on convex losses the rise grows). Average: the mean over draws of L(w + eps) - L(w) with eps uniform on
    the sphere of radius rho in the ascent's metric.

    Weights, buffers, ``.grad`` and generators are afterwards as before, bit for bit, also after an error.

    Args:
        model: in the mode in which it is to be looked at.
        loss_of: the scalar mean loss of a batch.
        batches: what the mean is over.
        radii: > 0.
        m: samples of a group, cut from each batch in order (the last may be smaller; each counts by its size, or
            by ``weigh``); None: all batches together are one group.
        ascent: metric, scope and subset of the perturbation; its rho is replaced. SAM's by default.
        climbs: gradients per group and radius, >= 1; the first is the same for all radii.
        draws: random directions, >= 1.
        seed: of the directions.
        weigh: how much a batch counts, a function of it: of a loss per token its tokens. Each the same by default.

    Cost: per group 1 pass and for each radius climbs - 1 passes and climbs forwards; draws x radii forwards over all.

    Raises:
        ValueError, TypeError: nothing to look at, an argument out of range, or an ascent without a pass of its own.
    """
    radii = _check(radii, m, climbs, draws)
    ascent = _plain(ascent or Ascent())
    surface = Surface(model, loss_of, batches, weigh)
    groups = list(_groups(surface, m))
    with surface.lent():
        loss, ways = surface.here(), _Ways(surface, ascent)
        worst = [[count * rise for rise in ways.worst(group, radii, climbs)] for group, _, count in groups]
        generator = torch.Generator().manual_seed(seed)
        drawn = [[there - loss for there in ways.drawn(radii, generator)] for _ in range(draws)]
    whole = sum(count for _, _, count in groups)
    columns = zip(radii, zip(*worst, strict=True), zip(*drawn, strict=True), strict=True)
    rises = tuple(_rise(rho, sum(rows) / whole, list(seen)) for rho, rows, seen in columns)
    return Sharpness(None if m is None else max(size for _, size, _ in groups), len(groups), loss, rises)


class _Ways:
    """The perturbations that are looked at, by SharpnessAware's own ascent."""

    def __init__(self, surface: Surface, ascent: Ascent) -> None:
        self._surface, self._ascent = surface, ascent
        self._still = torch.optim.SGD(surface.weights, lr=0.0)

    @contextmanager
    def along(self, vector: Iterable[Tensor], rho: float) -> Iterator[None]:
        """In the block the weights are at w + rho T^2 v / ||T v||."""
        for weight, v in zip(self._surface.weights, vector, strict=True):
            weight.grad = v.clone()
        with SharpnessAware(self._surface.model, self._still, ascent=replace(self._ascent, rho=rho)).perturbed():
            yield

    def worst(self, group: list[Any], radii: Sequence[float], climbs: int) -> list[float]:
        """The highest rise of one group's loss for each radius."""
        here, first = self._surface.loss(group), self._surface.gradient(group)
        return [max(self._climb(group, first, rho, climbs)) - here for rho in radii]

    def _climb(self, group: list[Any], gradient: list[Tensor], rho: float, climbs: int) -> Iterator[float]:
        for left in reversed(range(climbs)):
            with self.along(gradient, rho):
                yield self._surface.loss(group)
                if left:
                    gradient = self._surface.gradient(group)

    def drawn(self, radii: Sequence[float], generator: torch.Generator) -> list[float]:
        """The loss at each radius along one random direction: of v = xi / T the metric makes rho T xi / ||xi||."""
        xi = [torch.randn(w.shape, generator=generator, device="cpu").to(w) for w in self._surface.weights]
        metric = self._ascent.metric({name: w.detach() for name, w in self._surface.named.items()})
        if metric is not None:
            xi = [torch.where(t > 0, x / t, 0.0) for x, t in zip(xi, metric, strict=True)]
        return [self._along(xi, rho) for rho in radii]

    def _along(self, vector: list[Tensor], rho: float) -> float:
        with self.along(vector, rho):
            return self._surface.loss()


def _groups(surface: Surface, m: int | None) -> Iterator[tuple[list[Any], int, float]]:
    """Batches to look at together, of how many samples, and how much they count."""
    if m is None:
        yield surface.batches, 1, 1.0
        return
    for batch in surface.batches:
        reading = read(batch).sure()
        assert reading.size is not None
        for rows in torch.arange(reading.size, device="cpu").split(m):
            group = reading.take(Take.rows(rows))
            if count := len(rows) if surface.weigh is None else surface.weigh(group):
                yield [group], len(rows), float(count)


def _rise(rho: float, worst: float, averages: list[float]) -> Rise:
    error = None
    if len(averages) > 1:  # far away the loss may be NaN or inf, which `statistics` does not take
        finite = all(map(math.isfinite, averages))
        error = statistics.stdev(averages) / math.sqrt(len(averages)) if finite else math.nan
    return Rise(rho, worst, statistics.fmean(averages), error)


def _plain(ascent: Ascent) -> Ascent:
    if type(ascent.direction) is not Gradient or ascent.beta != 1:
        raise ValueError(
            f"ascent={ascent!r} was given; expected one along the gradient of the samples themselves: metric, scope "
            "and subset may be chosen"
        )
    return ascent


def _check(radii: Sequence[float], m: int | None, climbs: int, draws: int) -> tuple[float, ...]:
    for rho in radii:
        check("radii", rho, 0.0)
    if not radii or min(radii) == 0:
        raise ValueError(f"radii={radii!r} was given; expected numbers above 0, at least one")
    if m is not None:
        check_count("m", m)
    check_count("climbs", climbs)
    check_count("draws", draws)
    return tuple(sorted(float(rho) for rho in radii))
