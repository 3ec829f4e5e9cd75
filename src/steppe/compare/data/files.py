"""The kinds of task that are one file: what each proposes, which settings it listens to, how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from steppe.compare.data import columns, forecasts, language, tables
from steppe.compare.data.examples import Amounts, Task
from steppe.compare.data.forecasts import Forecast
from steppe.compare.data.options import DataOptions
from steppe.compare.data.tables import Table


@dataclass(frozen=True)
class FileKind:
    """A kind of task that is one file: the settings it proposes, and the data settings that it listens to."""

    recipe: Mapping[str, Any]
    hears: tuple[str, ...]
    task: Callable[[DataOptions, int], Task]


def _forecast(options: DataOptions, seed: int) -> Task:
    wanted = Forecast(
        options.place, options.lookback or 336, options.horizon or 96, options.targets, options.time_column,
        options.leave_out or (), options.parts or (0.7, 0.1, 0.2), options.stride or 1, options.season,
    )  # fmt: skip
    return forecasts.task(options.task, wanted)


def _table(options: DataOptions, seed: int) -> Task:
    if options.target is None:
        found = list(columns.read(options.place))
        raise ValueError(
            f"task {options.task!r} needs a column to tell; name it with --target: its columns are "
            + columns.some(found)
            + (f"; the last is {found[-1]}" if len(found) > columns.SHOWN else "")  # often the one that is wanted
        )
    wanted = Table(options.place, options.target, options.kind, options.leave_out or (), options.group, options.parts)
    return tables.task(options.task, wanted, seed, Amounts(options.labelled, options.validation, options.noise))


def _text(options: DataOptions, seed: int) -> Task:
    context = options.context or 64
    return language.task(options.task, options.place, context, options.parts, options.stride or context)


FILES: dict[str, FileKind] = {
    "forecast": FileKind(
        {"model": "channel_attention", "lookback": 336, "horizon": 96, "parts": [0.7, 0.1, 0.2], "stride": 1,
         "epochs": 12, "batch_size": 256, "optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.0,
         "rho": [0.2, 0.5, 1.0], "eval_every": 1, "sharpness_examples": 1000},
        ("lookback", "horizon", "targets", "time_column", "season", "leave_out", "parts", "stride"),
        _forecast,
    ),
    "table": FileKind(
        {"model": "mlp", "epochs": 60, "batch_size": 32, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01},
        ("target", "kind", "leave_out", "group", "parts", "labelled", "validation", "noise"),
        _table,
    ),
    "lm": FileKind(
        {"model": "gpt", "context": 64, "max_steps": 1200, "batch_size": 16, "optimizer": "adamw", "lr": 0.01,
         "weight_decay": 0.1, "warmup": 0.05, "sharpness_examples": 64, "test_curve": 128},
        ("context", "parts", "stride"),
        _text,
    ),
}  # fmt: skip
"""Prefix of a task -> its kind."""
