"""What a reader must know of a table's columns: numbers taken as words, numbers of rows, owners of rows, far values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from steppe._words import count
from steppe.compare.data import columns

NEARLY_ALL = 0.8
"""Share of the target's variance in a hundredth of the rows from which on it is told of."""
_OWNER = re.compile(
    r"(^|[_ ])(patient|subject|participant|person|user|customer|client|speaker|author|document|household|animal|group)"
    r"s?([_ ]?(id|no|nr|number))?$",
    re.IGNORECASE,
)
"""Names of columns that may say who rows belong to."""
FEW = 10
"""Different values of a column that are no owners."""
_RECUR = 20
"""Rows of each whole number, on the mean, from which on it may be the name of a class."""


def of_column(name: str, words: Sequence[str], numbers: bool, grouped: bool) -> Iterator[str]:
    """What a reader must know of a column of numbers, or of words; `grouped`: who owns the rows is known."""
    if columns.counts_rows(words):
        yield (
            f"Column {name!r} counts the rows: where their order tells something of the target, so does it "
            f"(--leave-out {name})."
        )
    elif not numbers and (odd := _mixed(name, words)):
        yield odd
    if not grouped and _OWNER.search(name) and FEW < len(set(words)) <= len(words) / 2:
        yield (
            f"Column {name!r} has {len(set(words))} different values in {len(words):,} rows: where rows of one belong "
            f"together, they are in all parts, and the test asks for what was shown; --group {name} keeps them in one."
        )


def outlying(goal: np.ndarray) -> tuple[str, ...]:
    """A sentence where the variance of the target, which the loss is measured in, is that of a few rows."""
    squares = np.sort((goal - goal.mean()) ** 2)
    few = max(1, len(goal) // 100)
    share = squares[-few:].sum() / squares.sum()
    if share < NEARLY_ALL:
        return ()
    return (
        f"{100 * min(share, 0.999):.3g} % of the target's variance is that of {few:,} of {len(goal):,} rows, those "
        "furthest out: the training and MSE are of these. Mend or leave out what is wrong, or take the logarithm.",
    )


def _mixed(name: str, words: Sequence[str]) -> str | None:
    """A sentence on a column of categories that may have been meant for numbers."""
    row, word, among = columns.intruder(words)
    if not among:
        return written(name, words)
    return (
        f"Column {name!r} has numbers but for {word!r} in row {row}{_and_more(among)}, and is taken as words, of which "
        "each is a category; were a missing value an empty cell, it would be numbers."
    )


def written(name: str, words: Sequence[str]) -> str | None:
    """A sentence on a column of words that read as numbers."""
    found = columns.written(words)
    return found and (
        f"Column {name!r} reads as numbers or dates ({found[1]!r} in row {found[0]}), and is taken as words, of which "
        "each is a category; written as plain numbers, it would be such."
    )


def _and_more(among: int) -> str:
    return f" and {count(among - 1, 'other cell')}" if among > 1 else ""


def many(words: Sequence[str], values: np.ndarray, target: str) -> str | None:
    """A sentence on whole numbers that recur so often that they may be classes."""
    different = len(set(words))
    if not (values == values.round()).all() or different > len(words) / _RECUR:
        return None
    return (
        f"The target {target!r} has {different} different whole numbers, and is taken as numbers; were they "
        "names of classes, --kind classes takes them so."
    )
