"""How many examples the parts of the data have, and what follows where they are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steppe.compare.analysis.wording import listing

Amounts = Mapping[str, Sequence[int]]
FEW = 30
"""A part with fewer examples is told of: one of them moves a share by more than three points."""

NAMES = {"train": "training", "val": "validation", "test": "the test"}
LUCK = {"train": "", "val": " (what it chooses is partly chance)", "test": " (its figures are rough)"}


def examples(records: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """How many examples each part has, the fewest and the most over the seeds; empty where no run tells."""
    told = [run["examples"] for run in records if run.get("examples")]
    sizes = {part: [run[part] for run in told] for part in NAMES}
    return {part: [min(found), max(found)] for part, found in sizes.items() if found}


def said(amounts: Amounts) -> str:
    """`20 for training, 100 to 110 for validation and 697 for the test`."""
    return listing([f"{_number(sizes)} for {NAMES[part]}" for part, sizes in amounts.items()])


def hints(amounts: Amounts) -> list[str]:
    """One sentence where a part has few examples."""
    few = [f"{_number(amounts[part])} for {NAMES[part]}{LUCK[part]}" for part in amounts if amounts[part][0] < FEW]
    return [f"Few examples: {listing(few)}."] if few else []


def _number(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]} to {sizes[1]}"
