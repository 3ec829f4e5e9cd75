"""Columns that know the answer: another name of the target, its value in another unit, what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from steppe.compare.data.order import ranks

_LEAST, _MISSED, _SURE = 20, 0.01, math.log(1e6)
"""Rows from which on a column is asked; share of what guessing misses that one may miss; odds against chance."""
_SAME = 0.9999
"""Correlation of ranks from which on two columns of numbers have one order."""


def knowing(inputs: Mapping[str, np.ndarray], goal: np.ndarray, numbers: bool, target: str) -> list[str]:
    """A sentence on the columns that tell the target by themselves.

    Args:
        inputs: columns of numbers (NaN is missing) or words by name.
        goal: the target, of as many rows, none of them a copy of another: such recur in every column.
        numbers: whether the target is numbers, not labels.
        target: its name.
    """
    if len(goal) < _LEAST:
        return []
    told = [name for name, each in inputs.items() if _tells(each, goal) or (numbers and _in_order(each, goal))]
    if not told:
        return []
    names = " and ".join(map(repr, told)) if len(told) < 3 else f"{', '.join(map(repr, told[:-1]))} and {told[-1]!r}"
    column, tells, it = ("Column", "tells", "it") if len(told) == 1 else ("Columns", "tell", "each")
    return [
        f"{column} {names} {tells} the target {target!r} without any other: where {it} is another name or unit of it, "
        f"or was known only after it, the figures here mean nothing; --leave-out {','.join(told)}."
    ]


def _tells(column: np.ndarray, goal: np.ndarray) -> bool:
    """Whether each value of a column, a code of some kind, goes with one value of the target, by more than chance.

    Values that are there once say nothing. Measured numbers may well part classes: of them it is asked whether they
    are the classes, one to one.
    """
    of, labels = (np.unique(each, return_inverse=True)[1].reshape(-1) for each in (column, goal))
    measured = column.dtype.kind == "f" and not (column == column.round())[~np.isnan(column)].all()
    if measured and of.max() != labels.max():
        return False
    pairs, counts = np.unique(of * (labels.max() + 1) + labels, return_counts=True)
    value, label = pairs // (labels.max() + 1), pairs % (labels.max() + 1)
    best = np.lexsort((-counts, value))[np.unique(np.sort(value), return_index=True)[1]]
    rows = np.bincount(of)
    best = best[rows[value[best]] > 1]
    recur = int(rows[rows > 1].sum())
    share = np.bincount(labels) / len(labels)
    again = np.isin(of, value[best])
    missed = recur - int(np.bincount(labels[again], minlength=1).max(initial=0))
    odds = -float(((counts[best] - 1) * np.log(share[label[best]])).sum())
    return 2 * recur >= len(goal) and recur - int(counts[best].sum()) <= _MISSED * missed and odds >= _SURE


def _in_order(column: np.ndarray, goal: np.ndarray) -> bool:
    """Whether a column of numbers rises or falls with a target of numbers."""
    if column.dtype.kind != "f":
        return False
    there = ~np.isnan(column)
    if there.sum() < max(_LEAST, len(goal) / 2) or len(np.unique(column[there])) < _LEAST:
        return False
    one, other = ranks(column[there]), ranks(goal[there])
    return abs(float(np.corrcoef(one, other)[0, 1])) >= _SAME
