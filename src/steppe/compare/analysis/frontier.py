"""What each row costs, and which rows are worth their cost: the Pareto front of the judging metric against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steppe.compare.analysis.groups import BASE, BASELINES, Group
from steppe.compare.judge import Judge, finite

Row = dict[str, Any]
TIE = 1.05
"""Measured times within this factor of one another are equal: step times scatter by some per cent."""


def measured(group: Group, groups: Sequence[Group], cost: Mapping[str, Any] | None) -> Row:
    """Passes (counted), step time and memory (measured) of one row, all relative to the base's.

    `length` is the number of steps relative to the base: 2 for the base with twice the epochs, 1/2 for that with
    half of them, or for a method that chose so, 0 for what needs no training. `time_ratio` is for the whole training,
    so it holds the length already.
    """
    length = _length(group, groups)
    memory = ((cost or {}).get("base") or {}).get("memory_bytes", 1)  # of scripts it is not measured
    of_base: Mapping[str, Any] = {"time_ratio": {"median": 1.0}, "memory_ratio": None if memory is None else 1.0}
    found: Mapping[str, Any] = of_base if group.method == BASE else {}
    if not cost:
        found = {}
    elif group.method != BASE:
        found = (cost.get("methods") or {}).get(group.method) or {}
    time = {k: float(v) * length for k, v in (found.get("time_ratio") or {}).items() if finite(v) is not None}
    return {
        "passes": group.mean(lambda run: run.get("passes_per_step")),
        "length": length,
        "time_ratio": time if "median" in time else None,
        "memory_ratio": None if group.untrained else finite(found.get("memory_ratio")),
    }


def price(rows: Sequence[Row]) -> str | None:
    """Write `cost` into each row and return its unit: measured "time" where every row has it, else "passes".

    One unit for all rows: a front over a mixture would compare seconds with counts.
    """
    shown = [row for row in rows if row["final"]]
    by_time = {id(row): (row["time_ratio"] or {}).get("median") for row in shown}
    by_passes = {id(row): row["passes"] and row["passes"] * row["length"] for row in shown}
    timed = bool(shown) and all(cost is not None for cost in by_time.values())
    for row in rows:
        row["cost"] = (by_time if timed else by_passes).get(id(row))
    return "time" if timed else "passes" if any(by_passes.values()) else None


def candidates(rows: Sequence[Row], judged: str, axis: str | None, judge: Judge) -> list[dict[str, Any]]:
    """The points of the plot: each row in the form it is judged by, and the base in all.

    `pareto` marks those that no other one beats: from the best down, a point is on the front unless one
    that is already there costs no more. Times that differ by less than `TIE` count as equal.
    """
    found = []
    for row in rows:
        own = [form for variant, form in BASELINES.values() if variant == row["variant"]] or ["final"]
        forms = own if row["method"] == BASE else [judged]
        for form in forms:
            figure = row.get(form)
            if figure and row["cost"] is not None:
                found.append({"row": row, "form": form, "cost": row["cost"], "figure": figure, "pareto": False})
    slack = TIE if axis == "time" else 1.0
    front: list[float] = []
    for point in sorted(found, key=lambda p: (-judge.rank(p["figure"]["mean"]), p["cost"])):
        point["pareto"] = not any(cost <= slack * point["cost"] for cost in front)
        front += [point["cost"]] if point["pareto"] else []
    return found


def mark_front(rows: Sequence[Row], judged: str, axis: str | None, judge: Judge) -> None:
    """Write `pareto` into each row: the row is on the front in one of its forms."""
    for row in rows:
        row["pareto"] = False
    for point in candidates(rows, judged, axis, judge):
        point["row"]["pareto"] |= point["pareto"]


def _length(group: Group, groups: Sequence[Group]) -> float:
    if group.untrained:
        return 0.0
    base = next((g for g in groups if (g.method, g.variant) == (BASE, "plain")), None)
    steps, reference = (g and g.mean(lambda run: run.get("steps")) for g in (group, base))
    if steps and reference:
        return steps / reference
    return {"double": 2.0, "half": 0.5}.get(group.variant, 1.0)
