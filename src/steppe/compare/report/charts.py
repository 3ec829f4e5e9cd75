"""What the pictures of the report show, as numbers and places for its templates, which draw them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steppe.compare.analysis.frontier import candidates
from steppe.compare.analysis.groups import BASE, TRAINED, Group
from steppe.compare.analysis.wording import FORMS, MINUS, Words, baseline, listing
from steppe.compare.judge import Judge
from steppe.compare.report import bands
from steppe.compare.report.bands import Band

Point = dict[str, Any]
Named = tuple[str, Band, str]
"""A curve: its name, its values, and what it is ("base", "method", "truth")."""

AXES = {"time": "training time ÷ the base’s", "passes": "passes of the whole training ÷ the base’s"}
WHISKERS = 5
"""Seeds from which a mark has its interval; that of fewer is long as a grid line, so the seeds are drawn themselves."""
WIDE, NARROW = 860, 372
"""Widths of a picture in pixels, for a desk and for a phone."""
ROW, LEFT, TOP, BOTTOM = 19, 44, 36, 40
SIZE = 20
"""Width of a mark, with what keeps it from the next."""
BELOW = 24
"""Room under the scale, or over it, for the arrows of marks that lie further down or up."""
FAR = 4
"""How many times the height of a picture a method may lie below it and be taken in."""


@dataclass(frozen=True)
class Axis:
    """A scale from values, `low` to `high`, to pixels, `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    unit: str = ""

    def at(self, value: float) -> float:
        """The pixel of a value; what lies outside is drawn at the edge."""
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """About five round values: pixel and text."""
        rough = (self.high - self.low) / 5 or 1.0
        power = 10 ** math.floor(math.log10(rough))
        step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
        values = (step * n for n in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1))
        return [(self.at(value), written(value) + self.unit) for value in values]


def written(value: float) -> str:
    """Up to four digits, with a true minus."""
    return f"{value + 0.0:.4g}".replace("-", MINUS)


def named_points(summary: Mapping[str, Any]) -> list[Point]:
    """The points of metric against cost with their names: methods by number, the best first, baselines by letter."""
    words = Words(summary)
    points = candidates(summary["rows"], summary["judged"], summary["cost_axis"], words.judge)
    for point in points:
        row = point["row"]
        point["base"] = row["method"] == BASE
        plain = point["form"] == "final" == summary["judged"] or not point["base"]
        point["name"] = row["label"] if plain else f"{row['label']}, {FORMS[point['form']]}"
        point["told"] = f"{point['name']}: {words.figure(point['figure'])} at {point['cost']:.2f}×"
    points.sort(key=lambda p: (p["base"], -words.judge.rank(p["figure"]["mean"])))
    methods = sum(not point["base"] for point in points)
    for place, point in enumerate(points):
        point["sign"] = chr(ord("a") + place - methods) if point["base"] else str(place + 1)
    return points


def against_cost(summary: Mapping[str, Any], points: Sequence[Point], width: int) -> dict[str, Any]:
    """The judging metric against cost, better ones higher up."""
    words = Words(summary)
    height = 400 if width == WIDE else 360
    x, y = _scales(summary, points, width, height)
    front = sorted((p["cost"], _height(p, words)) for p in points if p["pareto"])
    steps = [f"{x.at(cost)},{y.at(value)}" for cost, value in front]
    corners = [f"{x.at(c)},{y.at(v)}" for (_, v), (c, _) in zip(front, front[1:], strict=False)]
    path = [step for pair in zip(steps, [*corners, f"{x.end},{y.at(front[-1][1])}"], strict=True) for step in pair]
    best = summary["baselines"].get(summary["best_baseline"])
    marks = _apart([_mark(point, x, y, words) for point in points], (x.start + x.end) / 2)
    named = best and f"{baseline(summary['best_baseline'])}, {words.value(best['mean'])}"
    level = best and {"y": y.at(_of(best, words)), "text": named + " ↑" * (_of(best, words) > y.high)}
    level = level and level | _free(level["y"], level["text"], marks, x)
    way = "" if words.judge.higher else ", lower is better"
    form = "" if summary["judged"] == "final" else f", {FORMS[summary['judged']]}"
    return {
        "width": width, "height": height, "floor": height - BOTTOM, "x": x,
        "y": y if words.judge.higher else _Downward(y.low, y.high, y.start, y.end),
        "front": " ".join(path),
        "level": level,
        "title": f"test {words.judge.head}{form}{way}", "x_label": AXES[summary["cost_axis"]],
        "marks": marks[::-1], "words": describe(summary, points),
    }  # fmt: skip


@dataclass(frozen=True)
class _Downward(Axis):
    """The same axis with the sign of its figures turned, where lower is better."""

    @property
    def ticks(self) -> list[tuple[float, str]]:
        return [(at, text[1:] if text[0] == MINUS else MINUS + text) for at, text in super().ticks if text != "0"]


def _height(point: Point, words: Words) -> float:
    return _of(point["figure"], words)


def _of(figure: Mapping[str, Any], words: Words) -> float:
    return float(words.judge.sign * words.judge.scale * figure["mean"])


def _scales(summary: Mapping[str, Any], points: Sequence[Point], width: int, height: int) -> tuple[Axis, Axis]:
    """Of the costs, and around what matters of the figures; there is room for arrows where a point lies outside."""
    low, high, least = _span_of(summary, points)
    room = 0.25 * max(high - low, least)
    costs = [point["cost"] for point in points]
    spread = max(max(costs) - min(costs), 0.2)
    x = Axis(min(costs) - 0.06 * spread, max(costs) + 0.06 * spread, LEFT, width - 14, "×")
    above = any(_height(point, Words(summary)) > high + room for point in points)
    return x, Axis(low - room, high + room, height - BOTTOM - BELOW, TOP + BELOW * above)


def _span_of(summary: Mapping[str, Any], points: Sequence[Point]) -> tuple[float, float, float]:
    """The lowest and the highest figure that the picture holds, and what is the least difference to speak of.

    It holds the base in the form that counts, at its length and above, the methods, and all that is not below the best
    trained baseline by several intervals or gains. A method that lies further below than `FAR` such pictures are high
    is left out, as is a baseline without training that is so much better that all that was trained would be one spot.
    """
    words = Words(summary)
    trained = [point for point in points if point["row"]["variant"] in TRAINED] or points
    heights = sorted((_height(point, words) for point in points), reverse=True)
    top = max(_height(point, words) for point in trained)
    needed = max((_height(point, words) for point in trained if point["base"]), default=top)
    least = 0.5 if words.judge.percent else abs(top) / 100 or 1e-9
    halves = sorted(words.judge.scale * (point["figure"]["ci95"] or 0.0) for point in trained)
    reach = max(2 * max(top - needed, least), 3 * halves[len(halves) // 2])
    own = [point for point in trained if point["base"] and point["row"]["length"] >= 1]
    counts = [_height(point, words) for point in own if point["form"] == summary["judged"]]
    floor = min([needed - reach, *counts])
    methods = [_height(point, words) for point in trained if not point["base"]]
    low = min(value for value in heights if value >= floor)
    low = min([low, *(value for value in methods if value >= floor - FAR * (top - floor))])
    return low, max(value for value in heights if value <= top + max(top - low, least)), least


def _mark(point: Point, x: Axis, y: Axis, words: Words) -> dict[str, Any]:
    mean, figure, row = _height(point, words), point["figure"], point["row"]
    half = words.judge.scale * (figure["ci95"] or 0.0) if figure["n"] >= WHISKERS else 0.0
    seeds = row["by_seed"].get(point["form"], {}) if 1 < figure["n"] < WHISKERS else {}
    kind = " ".join(["base" if point["base"] else "method", *(["front"] if point["pareto"] else [])])
    return {
        "x": x.at(point["cost"]), "y": y.at(mean), "kind": kind, "sign": point["sign"], "told": point["told"],
        "below": mean < y.low, "above": mean > y.high, "whisker": half and (y.at(mean - half), y.at(mean + half)),
        "seeds": [y.at(words.judge.sign * words.judge.scale * value) for value in seeds.values()],
    }  # fmt: skip


def _apart(marks: list[dict[str, Any]], middle: float) -> list[dict[str, Any]]:
    """The same with marks that would lie on one another side by side, towards the middle of the picture."""
    for place, mark in enumerate(marks):
        aside = SIZE if mark["x"] < middle else -SIZE
        while any(_on(mark, other) for other in marks[:place]):
            mark["x"] = round(mark["x"] + aside, 1)
    return marks


def _on(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a mark lies on another one, or its bar so on the other's that neither can be read."""
    dx, dy = abs(one["x"] - other["x"]), abs(one["y"] - other["y"])
    return dx < SIZE - 1 and (dy < SIZE - 1 or (dx < SIZE / 4 and dy < 4 * SIZE))


def _free(y: float, text: str, marks: Sequence[Mapping[str, Any]], x: Axis) -> dict[str, Any]:
    """Where the name of a line may stand: in its middle, or at an end, where no mark is; else its figure at the end."""
    half = 3.3 * len(text)
    near = [mark["x"] for mark in marks if abs(mark["y"] - y) < SIZE]
    places = ((x.start + x.end) / 2, x.start + half, x.end - half)
    free = next((at for at in places if all(abs(at - m) > half + SIZE / 2 for m in near)), None)
    return {"at": x.end - SIZE, "text": text.rpartition(", ")[2]} if free is None else {"at": free}


def describe(summary: Mapping[str, Any], points: Sequence[Point]) -> str:
    """The plot in words."""
    front = listing([p["name"] for p in sorted(points, key=lambda p: float(p["cost"])) if p["pareto"]])
    each = "; ".join(point["told"] for point in points)
    head, axis = Words(summary).judge.head, AXES[summary["cost_axis"]]
    return f"Test {head} against {axis}. {each}. On the Pareto front: {front}."


def overlays(groups: Sequence[Group], order: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """All methods in one picture, for a desk and for a phone: learning curves, losses, slices, balancedness."""
    judge = groups[0].judge if groups else Judge()
    kinds: dict[str, tuple[str, str, Callable[[Group], Band | None], bool]] = {
        "curves": (f"test {judge.head}", "epoch", lambda g: bands.curve(g, f"test_{judge.name}", judge.scale), True),
        "losses": ("training loss", "epoch", lambda g: bands.curve(g, "train_loss"), True),
        "slices": ("rise of the training loss", "distance t", bands.rise, False),
        "balance": ("balancedness, 1 at the start", "epoch", bands.balance, False),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for key, (title, x_label, read, late) in kinds.items():
        named = _named(groups, order, read)
        widths = (WIDE, NARROW) if named else ()
        found[key] = [lines(named, title, x_label, width, late=late, up=judge.higher) for width in widths]
    return found


def _named(
    groups: Sequence[Group], order: Sequence[Mapping[str, Any]], read: Callable[[Group], Band | None]
) -> list[Named]:
    """The curves in the order of the table."""
    known = {(group.method, group.variant): (group, read(group)) for group in groups}
    keys = [(row["method"], row["variant"]) for row in order if (row["method"], row["variant"]) in known]
    found = (known[key] for key in keys or known)
    return [(g.label, band, "base" if g.method == BASE else "method") for g, band in found if band is not None]


def lines(
    named: Sequence[Named], title: str, x_label: str, width: int, *, late: bool = False, up: bool = True
) -> dict[str, Any]:
    """Curves in one picture, with a legend that holds their values, those at the end or under the pointer.

    Args:
        named: the curves.
        title: what they show.
        x_label: what they go over.
        width: of the picture; a narrow one has its legend below.
        late: leave out the steep beginning.
        up: the legend begins with the highest.
    """
    wide = width == WIDE
    plot = 340 if wide else 300
    beside = _legend_width([name for name, _, _ in named])
    legend = (width - beside, TOP + 8) if wide else (LEFT, plot + 22)
    low, high = _span([band for _, band, _ in named], late)
    places = sorted({x for _, band, _ in named for x in band.x})
    x = Axis(places[0], places[-1], LEFT, width - (beside + 26 if wide else 14))
    y = Axis(low, high, plot - BOTTOM, TOP)
    ranked = sorted(named, key=lambda each: each[1].mean[-1], reverse=up)
    colours = _colours(named)
    drawn = [
        {"name": name, "kind": colours[name], "path": _path(band, x, y), "y": legend[1] + ROW * place,
         "end": written(band.mean[-1])}
        for place, (name, band, _) in enumerate(ranked)
    ]  # fmt: skip
    height = max(plot, TOP + 16 + ROW * len(named)) if wide else plot + 30 + ROW * len(named)
    ends = "; ".join(f"{line['name']} ends at {line['end']}" for line in drawn)
    return {
        "width": width, "height": height, "floor": plot - BOTTOM, "x": x, "y": y, "title": title, "x_label": x_label,
        "legend": legend[0],
        "lines": drawn, "strips": list(_strips(ranked, places, x, legend[1])),
        "words": f"{title} by {x_label}: {ends}.",
    }  # fmt: skip


def _legend_width(names: Sequence[str]) -> int:
    """Room for a line, the longest name and a value, in pixels; a very long name takes at most half of the picture."""
    return min(max(232, 108 + 7 * max(map(len, names))), WIDE // 2)


def _path(band: Band, x: Axis, y: Axis) -> str:
    """What is within the scale: a curve comes in from where it has been cut off."""
    inside = ((a, b) for a, b in zip(band.x, band.mean, strict=True) if y.low <= b <= y.high)
    return " ".join(f"{x.at(a)},{y.at(b)}" for a, b in inside)


def _colours(named: Sequence[Named]) -> dict[str, str]:
    """A colour for each method, greys for baselines; dashes where there are more than colours."""
    found: dict[str, str] = {}
    counts = {"base": 0, "method": 0, "truth": 0}
    for name, _, kind in named:
        count = counts[kind]
        counts[kind] += 1
        dashed = " dashed" if count >= {"base": 1, "method": 8, "truth": 1}[kind] else ""
        found[name] = (f"c{count % 8}" if kind == "method" else kind) + dashed
    return found


def _span(found: Sequence[Band], late: bool) -> tuple[float, float]:
    """What the means span, after the first third where the beginning is left out."""
    values = [value for band in found for value in band.mean[len(band.mean) // 3 if late else 0 :]]
    room = max(0.06 * (max(values) - min(values)), 1e-3 * max(map(abs, values)), 1e-9)  # ticks have four digits
    return min(values) - room, max(values) + room


def _strips(ranked: Sequence[Named], places: Sequence[float], x: Axis, top: float) -> Iterable[dict[str, Any]]:
    """At every place (at most forty) what the curves have there, for the pointer."""
    kept = places[:: -(-len(places) // 40) or 1]
    middles = [(a + b) / 2 for a, b in zip(kept, kept[1:], strict=False)]
    known = [dict(zip(band.x, band.mean, strict=True)) for _, band, _ in ranked]
    for place, start, end in zip(kept, [x.low, *middles], [*middles, x.high], strict=True):
        values = [(top + ROW * i, written(each[place])) for i, each in enumerate(known) if place in each]
        yield {"x": x.at(start), "width": round(x.at(end) - x.at(start), 1), "at": x.at(place),
               "place": written(place), "values": values}  # fmt: skip
