"""What a reader must know of labelled examples: a test that was trained on, classes that are rare, or nearly all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils import _pytree as pytree

from steppe._command.copies import shared
from steppe.compare.data import together
from steppe.compare.data.examples import Source, Split, Task, Texts

MOST, LEAST = 0.8, 3
"""Share of the test from which on a class is nearly all of it; examples of a class, one for each part."""
_SHOWN = 5
HUGE = 2**28
"""Numbers beyond which the inputs of a user's own task, made anew for every seed, are not compared."""


def noted(source: Source, cure: str = "") -> Source:
    """The source with its notes, the same for every seed; `cure` is what may be done about copies."""
    copies = shared(source.pool.keys(), source.test.keys(), cure="" if source.pool.group is not None else cure)
    return replace(source, notes=(*source.notes, *copies, *rare(source), *alike(source.names)))


def copied(task: Task) -> list[str]:
    """A sentence where the test of a user's own task was trained on; windows and huge inputs are not looked at."""
    parts = (task.train, task.val, task.test)
    if any(type(part) not in (Split, Texts) for part in parts):
        return []
    if sum(leaf.numel() for part in parts for leaf in pytree.tree_leaves(part.x)) > HUGE:
        return []
    return shared([*task.train.keys(), *task.val.keys()], task.test.keys())


def alike(names: Sequence[str]) -> list[str]:
    """A sentence on classes whose names are the same but for the case of letters."""
    known: dict[str, list[str]] = {}
    for name in names:
        known.setdefault(name.strip().casefold(), []).append(name)
    twins = next((each for each in known.values() if len(each) > 1), None)
    if twins is None:
        return []
    return [f"{' and '.join(map(repr, twins))} are different classes, and differ in the case of letters alone."]


def rare(source: Source) -> list[str]:
    """A sentence on classes with too few examples, or groups, for all three parts."""
    parts = [part for part in (source.pool, source.val, source.test) if part is not None]
    what, counts = _counted(parts, source.classes)
    few = [f"{source.names[i] if source.names else i} ({n})" for i, n in enumerate(counts) if 0 < n < LEAST]
    if not few:
        return []
    more = f" and {len(few) - _SHOWN} more" if len(few) > _SHOWN else ""
    return [
        f"Classes with fewer {what} than there are parts, training, validation and test: {', '.join(few[:_SHOWN])}"
        f"{more}; what is said of them means nothing."
    ]


def _counted(parts: Sequence[Split], classes: int) -> tuple[str, list[int]]:
    """How many examples each class has, or groups where these stay whole."""
    y, group = torch.cat([part.y for part in parts]), [part.group for part in parts if part.group is not None]
    if group:
        return "groups", together.per_class(y, torch.cat(group), classes)
    return "examples", torch.bincount(y, minlength=classes).tolist()


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
        "--metric balanced_accuracy, f1, auroc or average_precision does."
    ]
