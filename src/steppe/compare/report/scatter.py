"""The plot of the judging metric against cost, better ones higher up: methods, baselines and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from steppe.compare.analysis.frontier import candidates
from steppe.compare.analysis.wording import FORMS, MINUS, Words, listing
from steppe.compare.report import svg
from steppe.compare.report.labels import Box, place

Point = dict[str, Any]
AXES = {"time": "training time ÷ the base’s", "passes": "passes of the whole training ÷ the base’s"}


def scatter(summary: Mapping[str, Any], key: str, width: float, height: float) -> Markup | None:
    """The plot as SVG, or None when no point has both a figure and a cost."""
    points = named_points(summary)
    if not points:
        return None
    with svg.canvas(width, height) as (figure, axes):
        figure.subplots_adjust(left=36 / width, right=1 - 12 / width, bottom=44 / height, top=1 - 30 / height)
        floor = _limits(axes, points, summary)
        _axis_texts(axes, summary)
        for point in points:
            point["y"] = max(point["height"], floor)
            _draw(axes, point, floor)
        _front(axes, points)
        _names(figure, axes, points, floor, Words(summary))
        return svg.inline(figure, key, f"{Words(summary).head} against cost", describe(summary, points))


def named_points(summary: Mapping[str, Any]) -> list[Point]:
    """The points of the plot with the names they carry."""
    judge = Words(summary).judge
    points = candidates(summary["rows"], summary["judged"], summary["cost_axis"], judge)
    for point in points:
        point["scale"], point["height"] = judge.scale, judge.sign * judge.scale * point["figure"]["mean"]
        row = point["row"]
        plain = point["form"] == "final" == summary["judged"] or row["method"] != "base"
        point["name"] = row["label"] if plain else f"{row['label']}, {FORMS[point['form']]}"
        point["is_base"] = row["method"] == "base"
    return points


def describe(summary: Mapping[str, Any], points: Sequence[Point]) -> str:
    """The plot in words."""
    words = Words(summary)
    each = [f"{p['name']} {words.figure(p['figure'])} at {p['cost']:.2f}×" for p in points]
    front = listing([p["name"] for p in sorted(points, key=lambda p: float(p["cost"])) if p["pareto"]])
    return f"Test {words.head} against {AXES[summary['cost_axis']]}. {'; '.join(each)}. On the Pareto front: {front}."


def _inside(means: Sequence[float], needed: float, gap: float) -> Sequence[float]:
    """Of descending values those drawn to scale: down to the needed one, and on until a gap dwarfs all above it."""
    count = max(-(-3 * len(means) // 5), sum(mean >= needed for mean in means))
    while count < len(means) and means[count - 1] - means[count] <= max(3 * (means[0] - means[count - 1]), gap):
        count += 1
    return means[:count]


def _limits(axes: Axes, points: Sequence[Point], summary: Mapping[str, Any]) -> float:
    """Set the limits around what matters and return the height at which points far below are drawn."""
    means = sorted((p["height"] for p in points), reverse=True)
    best, judge = summary["baselines"].get(summary["best_baseline"]), Words(summary).judge
    least = 0.5 if judge.percent else abs(means[0]) / 100 or 1e-9
    inside = _inside(means, judge.sign * judge.scale * best["mean"] if best else means[0], 4 * least)
    span = max(inside[0] - inside[-1], least)
    half = max(p["scale"] * (p["figure"]["ci95"] or 0) for p in points)
    room = min(max(half, 0.08 * span), 0.4 * span)
    floor = inside[-1] - room
    ceiling = 100.5 if judge.percent and judge.higher else 0.0 if judge.percent else math.inf
    axes.set_ylim(floor - (0.1 * span if len(inside) < len(means) else 0), min(inside[0] + room, ceiling))
    costs = [p["cost"] for p in points]
    spread = max(max(costs) - min(costs), 0.2)
    axes.set_xlim(min(costs) - 0.1 * spread, max(costs) + 0.16 * spread)
    return floor


def _axis_texts(axes: Axes, summary: Mapping[str, Any]) -> None:
    words = Words(summary)
    form = "" if summary["judged"] == "final" else f", {FORMS[summary['judged']]}"
    way = "" if words.judge.higher else ", lower is better"
    axes.set_title(f"test {words.head}{form}{way}", loc="left", fontsize=11, color=svg.MUTED, x=0, pad=12)
    axes.set_xlabel(AXES[summary["cost_axis"]], loc="right")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×".replace("-", MINUS)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{words.judge.sign * y:.4g}".replace("-", MINUS)))
    axes.spines["left"].set_visible(False)


def _draw(axes: Axes, point: Point, floor: float) -> None:
    colour = svg.BASE if point["is_base"] else svg.METHOD
    below = point["height"] < floor
    interval = point["scale"] * (point["figure"]["ci95"] or 0)
    if interval and not below:
        ends = [point["y"] - interval, point["y"] + interval]
        axes.plot([point["cost"]] * 2, ends, color=colour, lw=1.2, alpha=0.45, zorder=2)
    shape = "v" if below else "s" if point["row"]["variant"] == "double" else "o"
    fill = colour if point["pareto"] else svg.PAPER
    axes.plot(point["cost"], point["y"], shape, ms=8, mfc=fill, mec=colour, mew=1.6, zorder=4, clip_on=False)


def _front(axes: Axes, points: Sequence[Point]) -> None:
    front = sorted((p["cost"], p["y"]) for p in points if p["pareto"])
    xs, ys = [x for x, _ in front], [y for _, y in front]
    axes.step([*xs, axes.get_xlim()[1]], [*ys, ys[-1]], where="post", color=svg.METHOD, lw=1.4, alpha=0.55, zorder=1)


def _names(figure: Figure, axes: Axes, points: Sequence[Point], floor: float, words: Words) -> None:
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts, sizes, spots = [], [], []
    for point in points:
        below = point["height"] < floor
        name = f"{point['name']} {words.figure(point['figure'])}" if below else point["name"]
        weight = "bold" if point["pareto"] else "normal"
        text = axes.text(0, 0, name, fontsize=11, fontweight=weight, transform=None, va="bottom", zorder=5)
        text.set_color(svg.MUTED if point["is_base"] else svg.INK)
        extent = text.get_window_extent(renderer)
        texts.append(text)
        sizes.append((extent.width, 13.0))
        x, y = axes.transData.transform((point["cost"], point["y"]))
        spots.append((float(x), float(y)))
    area = axes.get_window_extent(renderer)
    bounds = Box(area.x0 + 2, area.y0 + 2, figure.bbox.width - 2, area.y1 + 8)
    for text, spot, box in zip(texts, spots, place(spots, sizes, bounds, _bars(axes, points)), strict=True):
        text.set_position((box.left, box.bottom))
        _leader(axes, spot, box)


def _bars(axes: Axes, points: Sequence[Point]) -> list[Box]:
    """The interval bars and the front as obstacles for labels."""
    found = []
    for point in points:
        half = point["scale"] * (point["figure"]["ci95"] or 0)
        x, low = axes.transData.transform((point["cost"], point["y"] - half))
        _, high = axes.transData.transform((point["cost"], point["y"] + half))
        found.append(Box(x - 1, low, x + 1, high))
    front = sorted((p["cost"], p["y"]) for p in points if p["pareto"])
    corners: list[Any] = [axes.transData.transform(corner) for corner in front]
    corners.append((axes.bbox.x1, corners[-1][1]))
    for (x0, y0), (x1, y1) in zip(corners, corners[1:], strict=False):
        found += [Box(x0, y0 - 1, x1, y0 + 1), Box(x1 - 1, min(y0, y1), x1 + 1, max(y0, y1))]
    return found


def _leader(axes: Axes, spot: tuple[float, float], box: Box) -> None:
    end = box.nearest(spot)
    length = ((end[0] - spot[0]) ** 2 + (end[1] - spot[1]) ** 2) ** 0.5
    if length > 11:
        start = [spot[k] + (end[k] - spot[k]) * 6 / length for k in (0, 1)]
        axes.plot([start[0], end[0]], [start[1], end[1]], color=svg.BASE, lw=0.7, transform=None, zorder=3)
