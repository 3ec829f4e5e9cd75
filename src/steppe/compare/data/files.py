"""The kinds of task that are one file: what each proposes, which settings it listens to, how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steppe.compare.data import forecasts
from steppe.compare.data.examples import Task
from steppe.compare.data.forecasts import Forecast
from steppe.compare.data.options import DataOptions


@dataclass(frozen=True)
class FileKind:
    """A kind of task that is one file.

    Args:
        recipe: the settings it proposes.
        hears: the data settings that it listens to.
        task: options and seed -> task.
    """

    recipe: Mapping[str, Any]
    hears: tuple[str, ...]
    task: Callable[[DataOptions, int], Task]


def _forecast(options: DataOptions, seed: int) -> Task:
    wanted = Forecast(
        options.place, options.lookback or 336, options.horizon or 96, options.targets, options.time_column,
        options.leave_out or (), options.parts or (0.7, 0.1, 0.2), options.stride or 1, options.season,
    )  # fmt: skip
    return forecasts.task(options.task, wanted)


FILES: dict[str, FileKind] = {
    "forecast": FileKind(
        {"model": "channel_attention", "lookback": 336, "horizon": 96, "parts": [0.7, 0.1, 0.2], "stride": 1,
         "epochs": 12, "batch_size": 256, "optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.0,
         "rho": [0.2, 0.5, 1.0], "eval_every": 1, "sharpness_examples": 1000},
        ("lookback", "horizon", "targets", "time_column", "season", "leave_out", "parts", "stride"),
        _forecast,
    ),
}  # fmt: skip
"""Prefix of a task -> its kind."""
