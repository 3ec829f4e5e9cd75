"""How many examples the parts of the data have, and what follows where they are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steppe.compare.analysis.wording import listing

Amounts = Mapping[str, Sequence[int]]
FEW, FEW_GROUPS = 30, 10
"""A part with fewer examples is told of, as one of them moves a share by more than three points; one with fewer groups,
as these, and not their examples, are what the figures are of."""

NAMES = {"train": "training", "val": "validation", "test": "the test"}
LUCK = {"train": "", "val": " (what it chooses is partly chance)", "test": " (its figures are rough)"}


def sizes(records: Sequence[Mapping[str, Any]], of: str = "examples") -> dict[str, list[int]]:
    """How many examples, or groups, each part has, the fewest and the most over the seeds; empty where no run tells."""
    told = [run[of] for run in records if run.get(of)]
    sizes = {part: [run[part] for run in told if part in run] for part in NAMES}
    return {part: [min(found), max(found)] for part, found in sizes.items() if found}


def said(amounts: Amounts) -> str:
    """`20 for training, 100 to 110 for validation and 697 for the test`."""
    return listing([f"{_number(sizes)} for {NAMES[part]}" for part, sizes in amounts.items()])


def hints(amounts: Amounts, least: int = FEW, what: str = "examples") -> list[str]:
    """One sentence where a part has few examples."""
    few = [f"{_number(amounts[part])} for {NAMES[part]}{LUCK[part]}" for part in amounts if amounts[part][0] < least]
    return [f"Few {what}: {listing(few)}."] if few else []


def whole(groups: Amounts, column: str | None) -> list[str]:
    """How many groups there are in each part, and where they are few."""
    if not groups:
        return []
    of = f" of {column!r}" if column else ""
    return [f"Groups{of}, none of which is in two parts: {said(groups)}.", *hints(groups, FEW_GROUPS, "groups")]


def _number(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]} to {sizes[1]}"
