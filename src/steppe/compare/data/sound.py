"""What a reader must know of labelled examples: a test that was trained on, classes that are rare, or nearly all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from steppe.compare.data.examples import Source, Task

LEAK, MOST, LEAST = 0.01, 0.8, 3
"""Share of the test that is told of; of the commonest class, likewise; examples of a class, one for each part."""
CROWD = 10
"""Examples of the same inputs, on the mean, from which on these are a few cases that recur, and no copies."""
_SHOWN = 5


def noted(source: Source) -> Source:
    """The source with its notes, the same for every seed."""
    return replace(source, notes=(*source.notes, *shared(source.pool.keys(), source.test.keys()), *rare(source)))


def shared(pool: Sequence[int], test: Sequence[int], what: str = "examples") -> list[str]:
    """A sentence where inputs of the test, each by its key, are among those that train or validate."""
    known = set(pool)
    many = sum(key in known for key in test)
    if not many or many < LEAK * len(test) or len(known) * CROWD < len(pool):
        return []
    return [
        f"{many:,} of the {len(test):,} test {what} ({100 * many / len(test):.0f} %) have inputs that are among those "
        "for training and validation too: in part the test asks for what was shown. Of copies keep one."
    ]


def rare(source: Source) -> list[str]:
    """A sentence on classes with too few examples for all three parts."""
    parts = [part.y for part in (source.pool, source.val, source.test) if part is not None]
    counts = torch.bincount(torch.cat(parts), minlength=source.classes).tolist()
    few = [f"{source.names[i] if source.names else i} ({n})" for i, n in enumerate(counts) if 0 < n < LEAST]
    if not few:
        return []
    more = f" and {len(few) - _SHOWN} more" if len(few) > _SHOWN else ""
    return [
        f"Classes with fewer examples than there are parts, training, validation and test: {', '.join(few[:_SHOWN])}"
        f"{more}; what is said of them means nothing."
    ]


def lopsided(task: Task) -> list[str]:
    """A sentence where accuracy judges and one class is nearly all of the test."""
    y = task.test.y
    if task.measured[0].name != "accuracy" or y.dim() != 1 or not len(y):
        return []
    share = float(torch.bincount(y.cpu()).max()) / len(y)
    if share < MOST:
        return []
    return [
        f"{100 * share:.0f} % of the test examples are of one class, so that accuracy tells little of the others; "
        "--metric f1 (each class counts alike) or matthews does."
    ]
