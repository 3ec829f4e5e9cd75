"""Forecasts: windows of a file's columns, in order of time, scaled by what is known when a forecast is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from steppe._words import count
from steppe.compare.data import columns, dates, order
from steppe.compare.data.examples import Task
from steppe.compare.data.windows import Windows, sizes, windows_in


@dataclass(frozen=True)
class Forecast:
    """What is to be forecast.

    Args:
        place: a CSV or Parquet file.
        lookback: rows that a forecast is made from.
        horizon: rows that are forecast.
        targets: columns that are forecast; None is all. The others are read too.
        time: the time column; None finds it, if there is one.
        leave_out: columns that are not used.
        parts: shares, or numbers of rows, of training, validation and test, one after the other in time.
        stride: rows between two training windows; validation and test have every window.
        season: rows after which things repeat; None is a day, where the time column tells how long a step is.
    """

    place: str
    lookback: int = 336
    horizon: int = 96
    targets: tuple[str, ...] | None = None
    time: str | None = None
    leave_out: tuple[str, ...] = ()
    parts: tuple[float, ...] = (0.7, 0.1, 0.2)
    stride: int = 1
    season: int | None = None


@lru_cache(maxsize=1)
def task(name: str, wanted: Forecast) -> Task:
    """The forecasting task of a file; every seed has the same.

    Scale and offset of each column are those of the training part. The first window of a later part is the first whose
    target lies in it, so that its look-back, and nothing else, may reach into the part before.
    """
    series, names, targets, day = read(wanted)
    ends = _ends(wanted, len(series))
    scaled = torch.from_numpy(_scaled(series, ends[0], names)).float()
    starts = (0, ends[0] - wanted.lookback, ends[1] - wanted.lookback)
    train, val, test = (
        Windows(scaled[start:end], wanted.lookback, wanted.lookback, wanted.horizon, targets, stride)
        for start, end, stride in zip(starts, ends, (wanted.stride, 1, 1), strict=True)
    )
    return Task(name, train, val, test, loss="mse", metrics=("mse", "mae"), rows=naive(wanted, targets, day))


def naive(wanted: Forecast, targets: int, day: int | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Forecasts that need no training: the last value, and the last season again and again."""
    season = wanted.season or day
    found = {"last value": _again(1, wanted.horizon, targets)}
    if season is not None and 1 < season <= wanted.lookback:
        name = "a day ago" if season == day else f"{season} rows ago"
        found[name] = _again(season, wanted.horizon, targets)
    return found


def _again(season: int, horizon: int, targets: int) -> Callable[[Tensor], Tensor]:
    def forecast(x: Tensor) -> Tensor:
        places = torch.arange(horizon, device=x.device) % season - season
        return x[:, places + x.shape[1], :targets]

    return forecast


def _scaled(series: np.ndarray, train: int, names: list[str]) -> np.ndarray:
    """Mean 0 and deviation 1 in the training part."""
    known = series[:train]
    still = next((name for name, low, high in zip(names, known.min(0), known.max(0), strict=True) if low == high), None)
    if still is not None:
        raise ValueError(f"column {still!r} never changes in the training part; leave it out with --leave-out {still}")
    return (series - known.mean(0)) / known.std(0)


def read(wanted: Forecast) -> tuple[np.ndarray, list[str], int, int | None]:
    """The numbers (time, columns), the targets first; their names; how many targets; how many rows make a day."""
    found = columns.without(columns.read(wanted.place), wanted.leave_out)
    if not found:
        raise ValueError(f"{wanted.place} has no column left; leave fewer out")
    time = columns.need(found, wanted.time, "time-column") if wanted.time else dates.find(found)
    day = dates.rows_of_a_day(found.pop(time), time) if time else None
    names = list(wanted.targets or found)
    for name in names:
        columns.need(found, name, "targets")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"{wanted.place}: targets must be columns of numbers, each named once, got {names}")
    ordered = [*names, *(name for name in found if name not in names)]
    series = np.stack([_numbers(found[name], name) for name in ordered], 1)
    return series, ordered, len(names), day


def _numbers(words: list[str], name: str) -> np.ndarray:
    values = columns.numbers(words)
    if values is None or not np.isfinite(values).all():
        row, word = next(
            (row, word) for row, word in enumerate(words, 1)
            if (value := columns.number(word)) is None or not np.isfinite(value)
        )  # fmt: skip
        has = "no value" if columns.missing(word) else f"{word!r}"
        if order.dated(words):
            raise ValueError(
                f"column {name!r} has dates such as {word!r}; write them as 2024-05-31 18:00, or leave it out with "
                f"--leave-out {name}"
            )
        raise ValueError(
            f"column {name!r} has {has} in row {row}; a series is finite numbers without holes: "
            f"mend it, or take the others with --leave-out {name}"
        )
    return values


def _ends(wanted: Forecast, rows: int) -> tuple[int, int, int]:
    """Where the three parts end, each of them long enough."""
    if wanted.season is not None and wanted.season > wanted.lookback:
        raise ValueError(f"season={wanted.season} is longer than the lookback of {wanted.lookback}; it is not seen")
    train, val, test = sizes(wanted.parts, rows, "rows")
    if not windows_in(train, wanted.lookback, wanted.lookback, wanted.horizon, 1):
        raise ValueError(
            f"the training part has {count(train, 'row')}, fewer than lookback {wanted.lookback} and horizon "
            f"{wanted.horizon} together; lower them or give it more with --parts"
        )
    for part, size in (("validation", val), ("test", test)):
        if size < wanted.horizon:
            raise ValueError(
                f"the {part} part has {count(size, 'row')}, fewer than the horizon of {wanted.horizon}; "
                "lower --horizon or give it more with --parts"
            )
    return train, train + val, train + val + test
