"""What a reader must know of a comparison of scripts beside what holds for any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steppe.compare.analysis.groups import BASE, Record
from steppe.compare.analysis.wording import listing
from steppe.compare.judge import of_records

UNNAMED = "score"
"""What the figure of a script is called that names none; higher is better then."""


def notes(records: Sequence[Record], cost: Mapping[str, Any] | None) -> list[str]:
    """Hints at what may be wrong with the script, then how its cost was measured."""
    final = [each for each in records if each["phase"] == "final"]
    return [*_same(final), *_beside(final), *_unnamed(final), *_cost(cost)]


def _same(final: Sequence[Record]) -> list[str]:
    """Seeds of the base with the very same curve: nothing in the script hangs on the seed."""
    judge = of_records(final)
    curves: dict[Any, list[int]] = {}
    for each in (r for r in final if (r["method"], r["variant"]) == (BASE, "plain")):
        curve = each["curve"]
        key = tuple(curve[f"val_{judge.name}"]), tuple(curve[f"test_{judge.name}"]), tuple(curve.get("train_loss", ()))
        curves.setdefault(key, []).append(each["seed"])
    alike = next((seeds for seeds in curves.values() if len(seeds) > 1), None)
    if alike is None:
        return []
    return [
        f"Seeds {listing([str(seed) for seed in alike])} of the base gave the same figures to the last digit: the "
        "script does not use its argument seed, or seeds itself with another; intervals over such seeds say nothing."
    ]


def _beside(final: Sequence[Record]) -> list[str]:
    """Optimizer steps whose gradient did not come through the method."""
    few = next((each for each in final if each["method"] != BASE and 0 < each["backwards"] < each["steps"]), None)
    if few is None:
        return []
    return [
        f"Of {few['steps']} optimizer steps of {few['label']} {few['backwards']} had a backward through what sharpen "
        "gave: in the others the method had no part."
    ]


def _unnamed(final: Sequence[Record]) -> list[str]:
    judge = of_records(final)
    if judge.name != UNNAMED:
        return []
    return [
        "The script's figure has no name and was taken as better when higher; name it, with its direction: "
        "--metric accuracy, or --metric loss:lower."
    ]


def _cost(cost: Mapping[str, Any] | None) -> list[str]:
    if cost is None or cost.get("measured") != "runs":
        return []
    return [
        f"Times are medians of a step's processor time in the real runs, not steps in turns ({cost['why']}): a ratio "
        "may err by what else the machine did."
    ]
