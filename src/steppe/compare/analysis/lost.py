"""Runs that diverged or learned nothing: found, kept from choosing, and named wherever their figures stand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steppe.compare.analysis.wording import count as count_of
from steppe.compare.analysis.wording import series

Record = Mapping[str, Any]

EXPLODED, IDLE = 2.0, 0.9
"""A loss that ends at so many times its start and guessing's ran away; at so much of guessing's, it stayed there."""
MANY = 200
"""Validation examples on which an accuracy at chance needs no loss to confirm it."""


def why(
    losses: Sequence[float], *, guessing: float | None = None, accuracy: float = 1.0, chance: float = 0.0, of: int = 1,
    judges: bool = True,
) -> str | None:  # fmt: skip
    """In what a run diverged, in words, or None.

    Args:
        losses: the training loss at every look.
        guessing: the loss of the best constant answer (the entropy of the labels); None where it is not known.
        accuracy: on the validation set, never the test set: what is found here keeps a run from being chosen.
        chance: that of its commonest class.
        of: how many validation examples there are.
        judges: whether the accuracy judges. Where classes are rare, what is good by F1 or likelihood may answer as
            often rightly as who always names the commonest.
    """
    first, last = losses[0], losses[-1]
    if not math.isfinite(last):
        return "its training loss is not finite"
    if last > EXPLODED * max(first, guessing or 0.0, 1e-12):
        return f"its training loss rose from {first:.4g} to {last:.4g}"
    clear = chance + 2 * math.sqrt(chance * (1 - chance) / of)
    if guessing is None or accuracy > clear or clear >= 1:  # so few examples that a perfect answer would not tell
        return None
    if last >= IDLE * guessing or (judges and of >= MANY):
        beside = f"{100 * chance:.1f} %, with {count_of(of, 'example')}"
        return f"its validation accuracy of {100 * accuracy:.1f} % is not clearly above guessing ({beside})"
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


def sentence(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """What stands behind the verdict where runs of a row diverged."""
    counted = ((row["diverged"], row["seeds"] + row["failed"], row["label"]) for row in rows if row["diverged"])
    named = [f"{gone} of {whole} runs of {label}" for gone, whole, label in counted]
    if not named:
        return None
    return f"† Diverged or no better than guessing: {series(named)}; what is said of these means nothing."
