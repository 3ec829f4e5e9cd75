"""Runs that diverged or learned nothing: found, kept from choosing, and named wherever their figures stand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steppe.compare.analysis.wording import series

Record = Mapping[str, Any]

EXPLODED, IDLE = 2.0, 0.9
"""A loss that ends at so many times its start and guessing's ran away; at so much of guessing's, it stayed there."""
SURE, MANY = 2.0, 100
"""Standard deviations beyond chance from which on outputs tell something of the labels. Validation examples of other
classes than the commonest that need no loss to confirm that they tell nothing."""


def why(
    losses: Sequence[float], *, guessing: float | None = None, beyond: float = math.inf, most: float = math.inf,
    others: int = 0, accuracy: float = 1.0,
) -> str | None:  # fmt: skip
    """In what a run diverged, in words, or None.

    Args:
        losses: the training loss at every look.
        guessing: the loss of the best constant answer (the entropy of the labels); None where it is not known.
        beyond: by how many deviations the outputs fit the validation labels better than these shuffled; never the test
            labels: what is found here keeps a run from being chosen. Accuracy would not do: where a class is rare, who
            finds half of it is hardly more often right than who always names the other.
        most: what the right answers would have.
        others: how many validation examples are not of the commonest class.
        accuracy: on these examples, to be said.
    """
    first, last = losses[0], losses[-1]
    if not math.isfinite(last):
        return "its training loss is not finite"
    if last > EXPLODED * max(first, guessing or 0.0, 1e-12):
        return f"its training loss rose from {first:.4g} to {last:.4g}"
    if guessing is None or beyond >= SURE or most < SURE:  # so few examples that the right answers would not tell
        return None
    if last >= IDLE * guessing or others >= MANY:
        return f"it tells no more of the validation labels than guessing does (accuracy {100 * accuracy:.1f} %)"
    return None


def lost(record: Record) -> str | None:
    """The same of a record; those that older versions kept say it by a loss that JSON does not have."""
    if "diverged" in record:
        return record["diverged"]
    losses = (record.get("curve") or {}).get("train_loss") or [0.0]
    return "its training loss is not finite" if losses[-1] is None else None


def count(rows: Sequence[dict[str, Any]], records: Iterable[Record]) -> None:
    """Say in each row how many of its final runs diverged."""
    gone = [(r["method"], r["variant"]) for r in records if r["phase"] == "final" and lost(r)]
    for row in rows:
        row["diverged"] = gone.count((row["method"], row["variant"]))


def sentence(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What stands behind the verdict where runs of a row diverged."""
    gone = [row for row in rows if row["diverged"]]
    trained = [row for row in rows if row["seeds"] + row["failed"] and (row["method"], row["passes"]) != ("base", 0)]
    if gone and len(trained) > 1 and all(row["diverged"] == row["seeds"] + row["failed"] for row in trained):
        return "† All runs diverged or ended no better than guessing: nothing follows from these figures."
    short = [row for row in gone if _too_short(row, gone)]
    odd = series([_counted(row) for row in gone if row not in short])
    told = [f"† Diverged or no better than guessing: {odd}; what is said of these means nothing."] if odd else []
    told += [f"† Too short to learn: {_counted(row)}, which is a weak baseline and no more." for row in short]
    return " ".join(told) or None


def _too_short(row: Mapping[str, Any], gone: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it is the base with half the epochs, where the base itself learns: it is a baseline like any other."""
    base = any((each["method"], each["variant"]) == ("base", "plain") for each in gone)
    return (row["method"], row["variant"]) == ("base", "half") and not row["failed"] and not base


def _counted(row: Mapping[str, Any]) -> str:
    return f"{row['diverged']} of {row['seeds'] + row['failed']} runs of {row['label']}"
