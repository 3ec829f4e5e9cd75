"""The code of docs/migrate.md trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.loops.shared import batch_of
from torch import nn

import steppe
from steppe.integrations.closure import SharpOptimizer


def new_sides(page: Path) -> list[str]:
    """The code of a page, with the changes of its diffs made."""
    blocks = re.findall(r"```(python|diff)\n(.*?)```", page.read_text(), re.DOTALL)
    return [
        "\n".join(line[2:] for line in text.splitlines() if not line.startswith("-")) if kind == "diff" else text
        for kind, text in blocks
    ]


PAGE = Path(__file__).parents[2] / "docs" / "migrate.md"


@pytest.mark.parametrize("block", new_sides(PAGE), ids=lambda text: text.splitlines()[0])
def test_the_code_of_the_migration_page_trains(block: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    names: dict[str, Any] = {
        "torch": torch, "steppe": steppe, "SharpOptimizer": SharpOptimizer, "model": model,
        "criterion": nn.CrossEntropyLoss(), "loader": [batch_of(t) for t in range(3)],
    }  # fmt: skip
    exec(block, names)  # noqa: S102
    sharp = names["sharp"] if "sharp" in names else names["optimizer"].sharp
    assert sharp.step == (3 if "for x, y" in block else 0)
