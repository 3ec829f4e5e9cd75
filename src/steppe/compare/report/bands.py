"""Curves over seeds: the mean, the lowest and the highest seed at every place where all seeds have a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steppe.compare.analysis.groups import Group
from steppe.compare.judge import finite

PLACES = 120
"""At most this many places are kept of a curve: more cannot be seen."""


@dataclass(frozen=True)
class Band:
    """A mean curve, and the curves of the lowest and the highest value among the seeds."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def curve(group: Group, what: str, scale: float = 1.0) -> Band | None:
    """One series of the learning curve (`test_accuracy`, `train_loss`, …) by epoch."""
    return _band([_pairs(run.get("curve"), "epoch", what) for run in group.runs], scale)


def balance(group: Group) -> Band | None:
    """The mean |B| of a model's pairs of factors, relative to its start, by epoch."""
    return _band([_pairs(run.get("balancedness"), "epoch", "share") for run in group.runs], 1.0)


def rise(group: Group) -> Band | None:
    """How the training loss rises along ±g/‖g‖ from where training ended: L(w + t·g/‖g‖) − L(w)."""
    return _band([_from_zero(_pairs(run.get("slice"), "t", "loss")) for run in group.runs], 1.0)


def _pairs(series: Mapping[str, Sequence[Any]] | None, x: str, y: str) -> dict[float, float]:
    if not series or not series.get(x) or not series.get(y):
        return {}
    found = ((finite(a), finite(b)) for a, b in zip(series[x], series[y], strict=False))
    return {a: b for a, b in found if a is not None and b is not None}


def _from_zero(pairs: dict[float, float]) -> dict[float, float]:
    if not pairs:
        return {}
    origin = pairs[min(pairs, key=abs)]
    return {t: loss - origin for t, loss in pairs.items()}


def _band(curves: Sequence[dict[float, float]], scale: float) -> Band | None:
    known = [pairs for pairs in curves if pairs]
    places = sorted(set.intersection(*(set(pairs) for pairs in known))) if known else []
    if len(places) < 2:
        return None
    stride = -(-len(places) // PLACES)
    kept = [*places[:-1:stride], places[-1]]
    found = [[scale * pairs[x] for pairs in known] for x in kept]
    return Band(kept, [math.fsum(v) / len(v) for v in found], [min(v) for v in found], [max(v) for v in found])
