"""A method beside the base given as much time: an estimate between the base's lengths, which costs no run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steppe._command.statistics import as_json, difference, estimate, paired
from steppe.compare.analysis.groups import BASE, BySeed, Group
from steppe.compare.judge import Judge

Row = dict[str, Any]


def base_at(cost: float, plain: BySeed, double: BySeed, half: BySeed | None = None) -> BySeed:
    """What the base would come to in `cost` times its training, seed by seed: b + (d − b) log2(cost).

    b at its own length, d at twice that, the longest there is: what costs more than two is set beside d. What costs
    less than b is set between b and h, at half that length: b + (b − h) log2(cost); without h, and below it, the least.

    Args:
        cost: of the method, in units of the base's training.
        plain: the base's figures.
        double: those with twice the epochs.
        half: those with half of them, where there are any.
    """
    if cost < 1 and half:
        share = math.log2(max(cost, 0.5))
        return {seed: plain[seed] + (plain[seed] - half[seed]) * share for seed in plain.keys() & half.keys()}
    share = math.log2(min(max(cost, 1.0), 2.0))
    return {seed: plain[seed] + (double[seed] - plain[seed]) * share for seed in plain.keys() & double.keys()}


def mark(rows: Sequence[Row], groups: Sequence[Group], form: str, judge: Judge) -> None:
    """Write `equal_cost` into each row: its gain over that, what the base comes to, and at what cost; or None.

    Figures are compared in a form: "final", "early", "averaged" or "lawa".
    """
    by_name = {(each.method, each.variant): each for each in groups}
    found = [by_name[BASE, name].figures(form) for name in ("plain", "double", "half") if (BASE, name) in by_name]
    for row in rows:
        own = by_name.get((row["method"], row["variant"]))
        known = (
            {(BASE, "plain"), (BASE, "double")} <= by_name.keys()
            and row["method"] != BASE
            and own is not None
            and row["cost"]
        )
        row["equal_cost"] = _gain(own.figures(form), row["cost"], found, judge) if known and own else None


def _gain(own: BySeed, cost: float, lengths: Sequence[BySeed], judge: Judge) -> Mapping[str, Any] | None:
    base = base_at(cost, *lengths)
    there = estimate(list(base.values()))
    gain = difference([judge.sign * each for each in paired(own, base)])
    return as_json(gain, cost=cost, base=there.mean) if there else None
