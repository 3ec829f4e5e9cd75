"""The loss over a plane through two models and their midpoint, or around one; both axes on the scale of the filters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from steppe._algebra import add_scaled_, copy_, inner, norm
from steppe._parts import check, check_count
from steppe.diagnostics._picture import new_axes
from steppe.diagnostics._surface import LossOf, Surface, Weigh

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEYOND = 1.6
"""The plane reaches so far, in units of the way from the middle to either model."""


class NoScale(ValueError):  # noqa: N818 - what is told to a user is its sentence
    """There is no filter on whose scale a plane could be drawn."""


@dataclass(frozen=True)
class Point:
    """A model in the plane: where it is, and its loss."""

    name: str
    x: float
    y: float
    loss: float


@dataclass(frozen=True)
class Plane:
    """What :func:`loss_plane` found. A distance of 1, along either axis, is as long as the filters of the centre.

    Attributes:
        x, y: the coordinates of the grid.
        loss: the mean loss, a row for each of ``y``; infinite where it is not a number.
        points: the models: "base", "middle" and "model", or "model" alone at the origin.
        cosine: of the two axes; random ones are as good as orthogonal.
        batch_statistics: whether normalisation layers used the batches' statistics instead of running ones.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]
    points: tuple[Point, ...]
    cosine: float
    batch_statistics: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, words, lists and dicts, for JSON."""
        return asdict(self)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Contours of the loss, evenly spaced in its logarithm. Needs matplotlib (``steppe[study]``)."""
        from matplotlib.colors import BoundaryNorm

        axes = new_axes() if axes is None else axes
        least = min(v for row in self.loss for v in row)
        most = max((v for row in self.loss for v in row if math.isfinite(v)), default=least)
        shift = 1e-3 * (most - least) - least if least <= 0 else 0.0  # a loss of zero or less has no logarithm
        low, high = (math.log(v + shift) if most > least else 0.0 for v in (least, most))
        levels = [math.exp(low + (high - low) * i / 24) - shift for i in range(25)]
        height = [[min(v, most) for v in row] for row in self.loss]
        if high > low:
            drawn = axes.contourf(self.x, self.y, height, levels=levels, cmap="viridis", norm=BoundaryNorm(levels, 256))
            axes.figure.colorbar(drawn, ax=axes, label="loss", format="%.3g", ticks=levels[::4])
        for point in self.points:
            axes.plot(point.x, point.y, "o", color="white", markeredgecolor="black", markersize=6)
            axes.annotate(f"{point.name} {point.loss:.3g}", (point.x, point.y), (0, 8), textcoords="offset points",
                          ha="center", color="white")  # fmt: skip
        axes.set(aspect="equal", xlabel="to the model" if len(self.points) > 1 else "at random", ylabel="at random")
        return axes


def loss_plane(
    model: nn.Module,
    loss_of: LossOf,
    batches: Iterable[Any],
    base: Mapping[str, Tensor] | None = None,
    *,
    points: int = 21,
    reach: float | None = None,
    seed: int = 0,
    weigh: Weigh | None = None,
) -> Plane:
    """The mean loss over a plane of weights.

    With ``base``: through base, model and their midpoint along x; along y a random direction d whose every filter is as
    long as the midpoint's, ||d_f|| = ||w_f|| (Li et al., NeurIPS 2018); a filter is a row of a weight, and biases and
    other vectors do not move along y. The unit of both axes is ||d||, so that the picture shows distances as they are.
    Without it: around the model, along two such directions.

    With ``base`` normalisation layers use the statistics of each batch: running ones belong to one point alone.
    Weights, buffers, ``.grad`` and generators are afterwards as before, bit for bit, also after an error.

    Args:
        model: in the mode in which it is to be looked at.
        loss_of: the scalar loss of a batch.
        batches: what the mean is over.
        base: another model's weights by name (its ``state_dict()``); those that are trained are used.
        points: of the grid along each axis, >= 2.
        reach: of the plane to each side of its centre; with ``base`` 1.6 times the way to either model, else 1.
        seed: of the random directions.
        weigh: how much a batch counts, a function of it: of a loss per token its tokens. Each the same by default.

    Cost: points^2 forwards over the batches; memory for three more copies of the trained weights.

    Raises:
        ValueError, TypeError: nothing to look at, ``base`` lacks a weight or has another shape, or is the model itself.
    """
    check_count("points", points, 2)
    if reach is not None and not reach > 0:
        check("reach", reach, math.nextafter(0.0, 1.0))
    surface = Surface(model, loss_of, batches, weigh)
    with _batch_statistics(model, base is not None) as changed, surface.lent():
        sheet = _around(surface, seed) if base is None else _between(surface, _of(surface, base), seed)
        reach = reach or (BEYOND * sheet.half or 1.0)
        grid = [reach * (2 * i / (points - 1) - 1) for i in range(points)]
        rows = tuple(tuple(sheet.loss(x, y) for x in grid) for y in grid)
        named = tuple(Point(name, x, 0.0, sheet.loss(x, 0.0)) for name, x in sheet.models())
        return Plane(tuple(grid), tuple(grid), rows, named, sheet.cosine(), changed)


@dataclass(frozen=True)
class _Sheet:
    """The centre and two axes of one length; ``half``: how far the models are from the centre (0: one model)."""

    surface: Surface
    centre: list[Tensor]
    x: list[Tensor]
    y: list[Tensor]
    half: float

    def models(self) -> list[tuple[str, float]]:
        return [("base", -self.half), ("middle", 0.0), ("model", self.half)] if self.half else [("model", 0.0)]

    @torch.no_grad()
    def loss(self, x: float, y: float) -> float:
        copy_(self.surface.weights, self.centre)
        add_scaled_(self.surface.weights, self.x, x)
        add_scaled_(self.surface.weights, self.y, y)
        loss = self.surface.loss()
        return loss if math.isfinite(loss) else math.inf

    def cosine(self) -> float:
        return float(inner(self.x, self.y) / (norm(self.x) * norm(self.y)))


@torch.no_grad()
def _between(surface: Surface, base: list[Tensor], seed: int) -> _Sheet:
    middle = [(w.detach() + b) / 2 for w, b in zip(surface.weights, base, strict=True)]
    way = [w.detach() - b for w, b in zip(surface.weights, base, strict=True)]
    y, length = _filterwise(middle, torch.Generator().manual_seed(seed)), float(norm(way))
    if length == 0:
        raise ValueError("base and model have the same weights; expected two models, or no base")
    unit = float(norm(y))
    return _Sheet(surface, middle, [unit / length * d for d in way], y, length / unit / 2)


@torch.no_grad()
def _around(surface: Surface, seed: int) -> _Sheet:
    centre, generator = [w.detach().clone() for w in surface.weights], torch.Generator().manual_seed(seed)
    x, y = (_filterwise(centre, generator) for _ in "xy")
    return _Sheet(surface, centre, x, y, 0.0)


def _filterwise(centre: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A random direction whose rows are as long as the centre's; vectors stay."""
    found = []
    for weight in centre:
        drawn = torch.randn(weight.shape, generator=generator, device="cpu").to(weight)
        if weight.ndim < 2:
            drawn.zero_()
        else:
            longer = weight.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1)
            drawn.mul_(longer.view(-1, *[1] * (weight.ndim - 1)))
        found.append(drawn)
    if not float(norm(found)) > 0:
        raise NoScale(
            "the trained weights are vectors only, or zero; expected matrices or filters, on whose scale to look around"
        )
    return found


def _of(surface: Surface, base: Mapping[str, Tensor]) -> list[Tensor]:
    """The base's values of the weights that are trained."""
    for name, weight in surface.named.items():
        if name not in base or base[name].shape != weight.shape:
            had = f"has the shape {tuple(base[name].shape)} there" if name in base else "is missing there"
            raise ValueError(
                f"base is not of this model: its parameter {name}, of shape {tuple(weight.shape)}, {had}; expected the "
                "state_dict() of the same model trained otherwise"
            )
    return [base[name].detach().to(w) for name, w in surface.named.items()]


@contextmanager
def _batch_statistics(model: nn.Module, wanted: bool) -> Iterator[bool]:
    """Normalisation layers take the statistics of each batch; gives whether there is any that did not."""
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats and not m.training]
    for layer in layers if wanted else ():
        layer.training = True
    try:
        yield wanted and bool(layers)
    finally:
        for layer in layers:
            layer.training = False
