"""The baselines of a task that need no training: tried before a study, measured beside its base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from steppe.compare.data.examples import Task
from steppe.compare.data.losses import each_of
from steppe.compare.engine.curve import figures, spread


class _Untrained(nn.Module):
    """A baseline that needs no training."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Tensor:
        return self.function(x)


def untrained(task: Task) -> dict[str, dict[str, float]]:
    """The metrics of the task's baselines that need no training, by their names."""
    models = {name: _Untrained(function) for name, function in task.rows.items()}
    return {name: figures(model, task, "val") | figures(model, task, "test") for name, model in models.items()}


def check_rows(task: Task) -> None:
    """Try each of them on two examples, before anything is trained."""
    few = spread(task.val, 2)
    for name, function in task.rows.items():
        try:
            each_of(task.loss, function(few.x), few.y)
        except Exception as error:
            raise ValueError(f"row {name!r} of the task fails on two examples: {error}") from error
