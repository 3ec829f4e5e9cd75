"""The time column of a series: found, in order, evenly spaced; how many rows make a day."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from steppe.compare.data.columns import missing, number

NAMES = ("date", "time", "datetime", "date_time", "timestamp", "ds")
"""What a time column is usually called."""

_DAY = timedelta(days=1)


def find(columns: Mapping[str, Sequence[str]]) -> str | None:
    """The time column: one that is called so, or else a first one that begins with a date."""
    named = next((name for name in columns if name.lower() in NAMES), None)
    if named is not None:
        return named
    first = next(iter(columns))
    return first if number(columns[first][0]) is None and _date(columns[first][0]) is not None else None


def rows_of_a_day(words: Sequence[str], column: str) -> int | None:
    """How many rows make a day; None where the step is longer, is not a part of a day, or is not known."""
    times = _times(words, column)
    for row, (one, other) in enumerate(pairwise(times), 1):
        if one == other:
            raise ValueError(
                f"column {column!r}: rows {row} and {row + 1} have the same time {words[row]}; keep one, or, "
                f"where a clock was set back, take the rows as they come with --leave-out {column}"
            )
        if one > other:
            raise ValueError(
                f"column {column!r}: row {row + 1} ({words[row]}) is earlier than row {row} ({words[row - 1]}); "
                "sort the rows by time"
            )
    step = _step(times, words, column)
    if not isinstance(step, timedelta) or step > _DAY or _DAY % step:
        return None
    return _DAY // step


def _times(words: Sequence[str], column: str) -> list[Any]:
    """All as numbers or all as dates."""
    plain = [number(word) for word in words]
    if all(value is not None and math.isfinite(value) for value in plain):
        return [value for value in plain if value is not None]
    found = []
    for row, word in enumerate(words, 1):
        date = _date(word)
        if date is None:
            what = "no time" if missing(word) else f"{word!r}, which is no date"
            raise ValueError(f"column {column!r}: row {row} has {what}; expected such as 2024-05-31 18:00")
        found.append(date)
    if len({date.tzinfo is None for date in found}) > 1:
        raise ValueError(f"column {column!r} has times with and without a time zone; write all in one way")
    return found


def _date(word: str) -> datetime | None:
    text = word.strip().replace("/", "-")
    try:
        return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError:
        return None


def _step(times: Sequence[Any], words: Sequence[str], column: str) -> float | timedelta | None:
    """The one step between all rows; None for months and years, whose days differ."""
    steps = [other - one for one, other in pairwise(times)]
    usual = Counter(steps).most_common(1)[0][0] if steps else None
    gap = next((row for row, step in enumerate(steps, 1) if not _same(step, usual)), None)
    if gap is None:
        return usual
    if _monthly(times):
        return None
    raise ValueError(
        f"column {column!r}: from row {gap} ({words[gap - 1]}) to the next it is {_told(steps[gap - 1])} where the "
        f"step is {_told(usual)}; fill the gap, or take the rows as evenly spaced with --leave-out {column}"
    )


def _told(step: object) -> str:
    return f"{step:g}" if isinstance(step, float) else str(step)


def _same(step: float | timedelta, usual: float | timedelta | None) -> bool:
    if isinstance(step, float) and isinstance(usual, float):
        return math.isclose(step, usual, rel_tol=1e-6)
    return step == usual


def _monthly(times: Sequence[Any]) -> bool:
    """Whether the same number of months lies between all, at one day of the month or at its end."""
    dates = [time for time in times if isinstance(time, datetime)]
    if len(dates) < len(times):
        return False
    months = {12 * (b.year - a.year) + b.month - a.month for a, b in pairwise(dates)}
    ends = all((date + _DAY).day == 1 for date in dates)
    return len(months) == 1 and months != {0} and (ends or len({date.day for date in dates}) == 1)
