"""Whole groups: the examples of one patient, user or document, which must not be in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from steppe._words import count as count_of

DRAWS, WORK = 100, 10_000_000
"""Draws of which the best is taken, fewer where they would touch more than so many examples."""

CURE = " Where they belong together, to one patient, user or document, --group COLUMN keeps these in one part."
CURE_OF_IMAGES = " Where images belong together, a folder for each below its class and --group folder keep them so."
"""What a reader may do whose examples recur."""


def numbered(words: Sequence[str], known: dict[str, int] | None = None) -> Tensor:
    """A number for each word, the same for the same; `known` keeps them for other parts."""
    known = {} if known is None else known
    return torch.tensor([known.setdefault(word, len(known)) for word in words])


def need(group: Tensor, parts: int) -> None:
    """Refuse fewer groups than there are parts to be made."""
    there = len(group.unique())
    if there < parts:
        raise ValueError(
            f"--group leaves {count_of(there, 'group')} to be parted; expected at least {parts}, as none may be in two "
            "of training, validation and test"
        )


def check(train: Tensor | None, val: Tensor | None, test: Tensor | None) -> None:
    """Refuse parts of a task of which two have a group in common."""
    named = {"training": train, "validation": val, "the test": test}
    known = {name: set(part.tolist()) for name, part in named.items() if part is not None}
    for one, other in combinations(known, 2):
        if both := known[one] & known[other]:
            are = "group is" if len(both) == 1 else "groups are"
            raise ValueError(f"{len(both)} {are} in {one} and in {other}; part the data by groups, or name none")


def apart(y: Tensor, group: Tensor, count: int, rng: torch.Generator, leave: int = 1) -> tuple[Tensor, Tensor]:
    """Indices of about `count` examples, all of their groups, and of the rest, at least `leave` groups, both shuffled.

    Of many draws, each within half of its largest group of `count`, the one in which size and classes are nearest to
    their shares; a class counts as much as any other, however rare it is.
    """
    member, sizes = torch.unique(group, return_inverse=True, return_counts=True)[1:]
    labels = torch.unique(y, return_inverse=True)[1]
    of_class, share = torch.bincount(labels), count / len(y)

    def off(taken: Tensor) -> float:
        chosen = taken[member]
        each = torch.bincount(labels[chosen], minlength=len(of_class)) / of_class
        return float((each - share).abs().mean() + (chosen.double().mean() - share).abs())

    draws = max(1, min(DRAWS, WORK // len(y)))
    best = min((_draw(sizes, count, leave, rng) for _ in range(draws)), key=off)[member]
    order = torch.randperm(len(y), generator=rng)
    return order[best[order]], order[~best[order]]


def _draw(sizes: Tensor, count: int, leave: int, rng: torch.Generator) -> Tensor:
    """Which groups are taken: at random, each that brings the sum nearer to `count`; at least one, and not the last."""
    order, of = torch.randperm(len(sizes), generator=rng).tolist(), sizes.tolist()
    taken, room = list[int](), count
    for each in order:
        if of[each] < 2 * room:
            taken.append(each)
            room -= of[each]
    taken = taken[: len(sizes) - leave] or [min(order, key=of.__getitem__)]
    return torch.zeros(len(sizes), dtype=torch.bool).index_fill(0, torch.tensor(taken), True)


def per_class(y: Tensor, group: Tensor, classes: int) -> list[int]:
    """In how many groups each class is."""
    pairs = torch.stack([y, group]).unique(dim=1)
    return torch.bincount(pairs[0], minlength=classes).tolist()
