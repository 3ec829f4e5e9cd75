"""Small multiples: one panel per method, the method in colour over the base in grey, the same scale in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from steppe.compare.analysis.groups import BASE, Group
from steppe.compare.analysis.wording import MINUS, broken, short
from steppe.compare.judge import Judge
from steppe.compare.report import bands, svg
from steppe.compare.report.bands import Band

WIDTH, HEIGHT = 250, 168


@dataclass(frozen=True)
class Kind:
    """What a set of panels shows."""

    key: str
    title: str
    x_label: str
    read: Callable[[Group], Band | None]
    limits: Callable[[Sequence[Band]], tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One drawn panel and the name over it."""

    name: str
    drawing: Markup


def learning_curves(groups: Sequence[Group], order: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The judging metric on the test set by epoch, zoomed to the last two thirds of training."""
    judge = groups[0].judge if groups else Judge()
    read = lambda group: bands.curve(group, f"test_{judge.name}", judge.scale)  # noqa: E731
    title = f"test {judge.title}{' in %' if judge.percent else ''}"
    return _panels(Kind("figure", title, "epoch", read, _upper if judge.percent else _late), groups, order)


def loss_curves(groups: Sequence[Group], order: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Training loss by epoch."""
    read = lambda group: bands.curve(group, "train_loss")  # noqa: E731
    return _panels(Kind("loss", "training loss", "epoch", read, _from_zero), groups, order)


def slices(groups: Sequence[Group], order: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Rise of the training loss along the ascent direction."""
    return _panels(Kind("slice", "rise of the training loss", "distance t", bands.rise, _whole), groups, order)


def balancedness(groups: Sequence[Group], order: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Balancedness of the pairs of factors by epoch, relative to its start; none where the model has no pairs."""
    return _panels(Kind("balance", "balancedness, 1 at the start", "epoch", bands.balance, _whole), groups, order)


def _panels(kind: Kind, groups: Sequence[Group], order: Sequence[Mapping[str, Any]]) -> list[Panel]:
    found = {(g.method, g.variant): (g, band) for g in groups if (band := kind.read(g)) is not None}
    if not found:
        return []
    limits = kind.limits([band for _, band in found.values()])
    base = found.get((BASE, "plain"), (None, None))[1]
    names = [(row["method"], row["variant"]) for row in order]
    shown = [name for name in names if name in found and name != (BASE, "plain")]
    return [_panel(kind, *found[name], base, limits, f"{kind.key}{i}") for i, name in enumerate(shown or found)]


def _panel(kind: Kind, group: Group, band: Band, base: Band | None, limits: tuple[float, float], key: str) -> Panel:
    with svg.canvas(WIDTH, HEIGHT) as (figure, axes):
        figure.subplots_adjust(left=34 / WIDTH, right=1 - 14 / WIDTH, bottom=32 / HEIGHT, top=1 - 8 / HEIGHT)
        if base is not None:
            _line(axes, base, svg.BASE, 1.2)
        _line(axes, band, svg.BASE if group.method == BASE else svg.METHOD, 1.8)
        _dress(figure, axes, kind, limits, [b for b in (band, base) if b])
        drawing = svg.inline(figure, key, f"{group.label}: {kind.title}", _words(kind, group, band, base))
    return Panel(group.label, drawing)


def _line(axes: Axes, band: Band, colour: str, width: float) -> None:
    if band.low != band.high:
        axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, lw=0)
    axes.plot(band.x, band.mean, color=colour, lw=width)


def _dress(figure: Figure, axes: Axes, kind: Kind, limits: tuple[float, float], shown: Sequence[Band]) -> None:
    axes.set_ylim(*limits)
    axes.set_xlim(min(b.x[0] for b in shown), max(b.x[-1] for b in shown))
    axes.set_xlabel(kind.x_label, loc="right", fontsize=10, labelpad=1)
    axes.tick_params(labelsize=10)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}".replace("-", MINUS)))


def _words(kind: Kind, group: Group, band: Band, base: Band | None) -> str:
    text = f"{group.label} ends at {short(band.mean[-1])} ({kind.title}, {kind.x_label} {short(band.x[-1])})"
    return f"{text}; the base in grey ends at {short(base.mean[-1])}." if base else text + "."


def _upper(found: Sequence[Band]) -> tuple[float, float]:
    """From the lowest mean after the first third (and at most 40 points below the top) to the highest seed."""
    top = max(max(b.mean) for b in found)
    bottom = min(min(b.mean[len(b.mean) // 3 :]) for b in found)
    bottom = max(bottom, top - 40)
    room = 0.08 * max(top - bottom, 1.0)
    return bottom - room, min(top + 2 * room, 100.5)


def _late(found: Sequence[Band]) -> tuple[float, float]:
    """What the means span after the first third, and every seed at the end."""
    late = [value for b in found for value in (*b.mean[len(b.mean) // 3 :], b.low[-1], b.high[-1])]
    room = 0.08 * (max(late) - min(late)) or 1e-9
    return min(late) - room, max(late) + room


def _from_zero(found: Sequence[Band]) -> tuple[float, float]:
    return 0.0, 1.05 * max(b.at(0.05) for b in found)


def _whole(found: Sequence[Band]) -> tuple[float, float]:
    low, high = min(min(b.mean) for b in found), max(max(b.mean) for b in found)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def sharpness(summary: Mapping[str, Any], key: str) -> Markup | None:
    """Dots with intervals: sharpness of each row, on a logarithmic axis where the values span much."""
    rows = [row for row in summary["rows"] if row["sharpness"]]
    if not rows:
        return None
    values = [row["sharpness"]["mean"] for row in rows]
    height = 25 * len(rows) + 44
    with svg.canvas(420, height) as (figure, axes):
        figure.subplots_adjust(left=120 / 420, right=1 - 14 / 420, bottom=40 / height, top=1 - 4 / height)
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_xscale("log")
        for place, row in enumerate(rows):
            _dot(axes, place, row)
        axes.set_yticks(range(len(rows)), [broken(row["label"]) for row in rows])
        axes.tick_params(axis="y", labelcolor=svg.INK, labelsize=11)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("L(w+ε) − L(w) on the training set", loc="right")
        axes.spines["left"].set_visible(False)
        if axes.get_xscale() == "linear":
            axes.set_xlim(min(0.0, axes.get_xlim()[0]), None)
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.4g}".replace("-", MINUS)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        words = "; ".join(f"{row['label']} {short(row['sharpness']['mean'])}" for row in rows)
        return svg.inline(figure, key, "Sharpness at the end of training", words + ".")


def _dot(axes: Axes, place: int, row: Mapping[str, Any]) -> None:
    colour = svg.BASE if row["method"] == BASE else svg.METHOD
    mean, half = row["sharpness"]["mean"], row["sharpness"]["ci95"] or 0.0
    low = mean - half if axes.get_xscale() == "linear" else max(mean - half, mean / 5)
    axes.plot([low, mean + half], [place] * 2, color=colour, lw=1.4, alpha=0.5)
    axes.plot(mean, place, "o", ms=7, mfc=colour, mec=colour)
