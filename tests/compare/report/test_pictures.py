"""The report's pictures: every point is inside, told and on no other, and ticks are round."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from tests.compare.records import CLEAN, NOISY, Fake, cost, records, spec

from steppe.compare.analysis.summary import summarise
from steppe.compare.report.bands import Band
from steppe.compare.report.charts import NARROW, WIDE, Axis, _free, against_cost, lines, named_points


def drawn(methods: dict[str, Fake], seeds: int = 5, width: int = WIDE) -> dict[str, Any]:
    summary = summarise(records(methods, range(seeds)), cost(methods), spec(methods))
    return against_cost(summary, named_points(summary), width)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_point_is_inside_and_told(width: int) -> None:
    picture = drawn(NOISY, width=width)
    assert len(picture["marks"]) == 6  # two methods, the base and that of twice the epochs, both stopped and not
    for mark in picture["marks"]:
        assert picture["x"].start <= mark["x"] <= picture["x"].end
        assert picture["y"].end <= mark["y"] <= picture["y"].start
        assert mark["told"].endswith("×")


def test_points_far_below_bear_an_arrow() -> None:
    below = {mark["told"].partition(":")[0] for mark in drawn(NOISY)["marks"] if mark["below"]}
    assert below == {"base, to the end", "base, 2× epochs, to the end"}
    assert not any(mark["below"] for mark in drawn(CLEAN)["marks"])


def beside_untrained(level: float, **methods: float) -> dict[str, Any]:
    """The picture of a base at 0.700, methods as given, and a baseline that needs no training."""
    fakes = {"base": Fake("base", 0.7, passes=1.0, grid=())} | {name: Fake(name, at) for name, at in methods.items()}
    runs = records(fakes)
    for run in runs:
        if (run["method"], run["variant"], run["phase"]) == ("base", "plain", "final"):
            run["rows"] = {"yesterday": {"val_accuracy": level, "test_accuracy": level}}
    summary = summarise(runs, None, spec(fakes))
    return against_cost(summary, named_points(summary), WIDE)


def arrows(picture: dict[str, Any], way: str) -> set[str]:
    return {re.split("[:,]", mark["told"])[0] for mark in picture["marks"] if mark[way]}


def test_what_was_trained_fills_the_picture_where_a_row_without_training_is_far_better() -> None:
    picture = beside_untrained(0.95, sam=0.72, asam=0.69)
    assert arrows(picture, "above") == {"yesterday"} and not arrows(picture, "below")
    assert 66 < picture["y"].low < 69 and 72 < picture["y"].high < 75
    assert picture["level"]["text"].endswith("95.0 ↑")
    assert picture["y"].end >= 50, "room for the arrow"
    near = beside_untrained(0.74, sam=0.72, asam=0.69)
    assert not arrows(near, "above") and near["level"]["text"].endswith("74.0")
    assert arrows(beside_untrained(0.1, sam=0.72), "below") == {"yesterday"}


def test_a_method_is_within_the_picture_unless_it_has_collapsed() -> None:
    assert not arrows(beside_untrained(0.1, sam=0.72, asam=0.64), "below") - {"yesterday"}
    assert arrows(beside_untrained(0.1, sam=0.72, asam=0.2), "below") == {"yesterday", "asam"}


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_no_mark_lies_on_another(width: int) -> None:
    base = CLEAN["base"]
    same = CLEAN | {name: replace(base, label=name, rho=0.1, passes=1.0, time=1.0) for name in ("sam", "asam", "gsam")}
    places = [(mark["x"], mark["y"]) for mark in drawn(same, width=width)["marks"]]
    near = [max(abs(a - c), abs(b - d)) for (a, b), (c, d) in itertools.combinations(places, 2)]
    assert min(near) >= 19 and all(44 <= x <= width - 14 for x, _ in places)


def test_all_that_lies_within_some_intervals_is_inside() -> None:
    flat = {name: replace(NOISY[name], accuracy=level, early=level) for name, level in (("base", 0.6), ("sam", 0.58))}
    summary = summarise(records(flat, spread=0.02), cost(flat), spec(flat))
    assert not any(mark["below"] for mark in against_cost(summary, named_points(summary), WIDE)["marks"])


def test_few_seeds_are_drawn_themselves_not_as_long_bars() -> None:
    assert all(len(mark["seeds"]) == 3 and not mark["whisker"] for mark in drawn(NOISY, 3)["marks"])
    assert all(mark["whisker"] and not mark["seeds"] for mark in drawn(NOISY, 5)["marks"])


def test_the_best_baseline_is_a_line_with_its_name() -> None:
    picture = drawn(NOISY)
    best = next(mark for mark in picture["marks"] if mark["told"].startswith("base, 2× epochs, stopped early"))
    assert picture["level"]["y"] == best["y"] and "twice the epochs, stopped early, 88." in picture["level"]["text"]
    near = [mark["x"] for mark in picture["marks"] if abs(mark["y"] - best["y"]) < 20]
    assert all(abs(picture["level"]["at"] - x) > 100 for x in near), "no mark lies on the name"
    assert drawn(NOISY, width=NARROW)["level"]["text"].startswith("88."), "no room for more"
    crowd = [{"x": at, "y": 50} for at in range(44, 340, 60)]
    assert _free(50, "the base, 88.1", crowd, Axis(0, 1, 44, 358)) == {"at": 338, "text": "88.1"}


def test_the_pointer_finds_the_value_of_each_curve() -> None:
    up, down = [0.0, 1.0, 2.0], [2.0, 1.5, 0.5]
    named = [("down", Band([1, 2, 3], down, down, down), "base"), ("up", Band([1, 2, 3], up, up, up), "method")]
    picture = lines(named, "what", "epoch", WIDE)
    assert [line["name"] for line in picture["lines"]] == ["up", "down"]
    assert [line["end"] for line in picture["lines"]] == ["2", "0.5"]
    values = [[text for _, text in strip["values"]] for strip in picture["strips"]]
    assert values == [["0", "2"], ["1", "1.5"], ["2", "0.5"]]
    edges = [(strip["x"], strip["width"]) for strip in picture["strips"]]
    assert edges[0][0] == picture["x"].start
    assert all(round(x + width, 1) == after for (x, width), (after, _) in zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize("name", ["SAM", "Recommended (ramp=0.1, samples=16)"])
def test_the_legend_has_room_for_the_longest_name_and_its_value(name: str) -> None:
    band = Band([1.0, 2.0], [0.5, 0.6], [0.5, 0.6], [0.5, 0.6])
    picture = lines([(name, band, "method")], "", "", WIDE)
    assert picture["width"] - picture["legend"] >= max(232, 30 + 7 * len(name) + 60)
    assert picture["x"].end < picture["legend"]


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [(93.7, 96.4, "94 95 96"), (0.0384, 0.0612, "0.04 0.045 0.05 0.055 0.06"), (-3, 2, "−3 −2 −1 0 1 2")],
)
def test_ticks_are_round(low: float, high: float, texts: str) -> None:
    ticks = Axis(low, high, 0, 100).ticks
    assert [text for _, text in ticks] == texts.split() and [at for at, _ in ticks] == sorted(at for at, _ in ticks)


@pytest.mark.parametrize("values", [[33.333] * 3, [0.25, 0.25 + 1e-12, 0.25], [0.0] * 3])
def test_the_scale_of_curves_that_are_flat_has_ticks_that_differ(values):
    """Four ticks of one picture were all 33.33."""
    band = Band([1.0, 2.0, 3.0], values, values, values)
    texts = [text for _, text in lines([("base", band, "base")], "", "", WIDE)["y"].ticks]
    assert len(texts) == len(set(texts)) > 1
