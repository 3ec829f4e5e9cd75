"""A few forecasts of a trained model beside the truth, which a record keeps for the report."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steppe.compare.data.examples import Task
from steppe.compare.data.losses import fitted
from steppe.compare.data.windows import Windows
from steppe.compare.engine.measure import evaluating

POINTS = 100
"""At most this many rows of a window are kept: more cannot be seen."""


@torch.no_grad()
def kept(model: nn.Module, task: Task) -> dict[str, Any]:
    """What a record gets: the first target in two windows of the test part; nothing where a task has no windows.

    They lie a quarter and three quarters in: windows that no run has chosen.
    """
    test = task.test
    if not isinstance(test, Windows) or test.of_bytes:
        return {}
    rows = sorted({len(test) // 4, 3 * len(test) // 4})
    few = test.take(torch.tensor(rows, device=test.y.device))
    with evaluating(model):
        told = fitted(model(few.x), few.y)
    found = zip(rows, few.x[..., 0], few.y[..., 0], told[..., 0], strict=True)
    return {"forecast": {"windows": [_window(row, *each) for row, *each in found]}}


def _window(row: int, before: Tensor, truth: Tensor, told: Tensor) -> dict[str, Any]:
    back = min(len(before), len(truth) // 2)
    stride = -(-(back + len(truth)) // POINTS)
    past, ahead = range(-(back // stride) * stride, 0, stride), range(0, len(truth), stride)
    known = [before[len(before) + i] for i in past] + [truth[i] for i in ahead]
    return {"row": row, "at": [*past, *ahead], "truth": _short(known), "to": [*ahead],
            "told": _short([told[i] for i in ahead])}  # fmt: skip


def _short(values: list[Tensor]) -> list[float]:
    return [round(float(value), 4) for value in values]
