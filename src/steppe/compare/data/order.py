"""Rows in order: whether a table was written as time went by, or its neighbouring rows are alike in another way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np

from steppe.compare.data.columns import counts_rows, missing, number, numbers
from steppe.compare.data.dates import NAMES

_DATE = re.compile(
    r"(?P<y>\d{4})(?P<s>[-/.])(?P<m>\d{1,2})((?P=s)(?P<d>\d{1,2}))?([T ,].*)?"
    r"|(?P<one>\d{1,2})(?P<t>[-/.])(?P<other>\d{1,2})(?P=t)(?P<last>\d{4})([T ,].*)?"
)
"""`2024-05-31 18:00`, `2024/5`, `31.5.2024`, `5/31/2024`."""
_NEARLY, _SEVERAL = 0.95, 3
"""Share of the cells from which on a column is of dates; different days that make one."""
_ROWS, ALIKE, _SURE = 100, 0.5, 5.0
"""Rows, correlation between neighbours, and standard deviations of it, from which on they are told to be alike."""
CURE = "--parts 0.7,0.1,0.2 trains on the first rows and tests on the last"


def of_time(found: Mapping[str, Sequence[str]], in_turn: bool, but: str | None = None) -> list[str]:
    """A sentence where a column says when a row was; `but` is one that keeps rows together and needs none."""
    days = {name: each for name, words in found.items() if name != but and (each := _days(name, words))}
    ways = {name: _way(each) for name, each in days.items()}
    name = next((name for way in (1, -1, 0) for name in ways if ways[name] == way), None)
    if name is None:
        return []
    if in_turn:
        odd = {-1: "the latest first", 0: "not in order of time"}.get(ways[name])
        told = f"--parts takes the rows as they stand, {odd} (column {name!r}): sort them, oldest first."
        return [told] if odd else []
    which = {1: "The rows are in order of time", -1: "The rows are in order of time, the latest first"}
    first = {1: "", -1: "with the oldest first, ", 0: "with the rows sorted by it, "}[ways[name]]
    return [
        f"{which.get(ways[name], 'The rows have times')} (column {name!r}), and those that test are drawn from between "
        "the others: where things change with time, or rows near in time are alike, figures are better than they "
        f"would be for rows to come; {first}{CURE}."
    ]


def dated(words: Sequence[str]) -> bool:
    """Whether a column is of dates, in whatever way they are written."""
    return bool(_of_dates([word for word in words if not missing(word)]))


def _days(name: str, words: Sequence[str]) -> list[float]:
    """When each row was, in order of time; empty where the column does not say it."""
    known = [word for word in words if not missing(word)]
    if (plain := [number(word) for word in known[:_SEVERAL]]) and None not in plain:
        values = numbers(known) if name.lower() in (*NAMES, "year") else None
        # A time in numbers may be how long something took, which no order shows.
        found = [] if values is None or not _way(list(values)) else list(values)
    else:
        found = _of_dates(known)
    return found if len(set(found)) >= _SEVERAL else []


def _of_dates(words: Sequence[str]) -> list[float]:
    if not words or not _DATE.fullmatch(words[0]) and not _DATE.fullmatch(words[-1]):
        return []
    read = [each for each in map(_DATE.fullmatch, words) if each]
    if len(read) < _NEARLY * len(words):
        return []
    day_first = any(each["one"] and (int(each["one"]) > 12 or each["t"] == ".") for each in read)
    found = [_day(each, day_first) for each in read]
    return [day for day in found if day is not None] if found.count(None) <= (1 - _NEARLY) * len(words) else []


def _day(found: re.Match[str], day_first: bool) -> float | None:
    one, other = (found["one"], found["other"]) if day_first else (found["other"], found["one"])
    year, month, day = (found["y"], found["m"], found["d"] or 1) if found["y"] else (found["last"], other, one)
    try:
        return float(date(int(year), int(month), int(day)).toordinal())
    except ValueError:
        return None


def _way(values: Sequence[float] | np.ndarray) -> int:
    """1 where the values never fall, -1 where they never rise, else 0."""
    steps = np.diff(values)
    return 1 if bool((steps >= 0).all()) else -1 if bool((steps <= 0).all()) else 0


def of_neighbours(found: Mapping[str, Sequence[str]], inputs: Mapping[str, np.ndarray], goal: np.ndarray) -> list[str]:
    """A sentence where the target, or most of the inputs, go on from row to row, and the file is sorted by none.

    Sorted rows are alike in what they are sorted by: that is how the file was written, not how its rows came about.
    """
    if len(goal) < _ROWS or _sorted(goal) or any(_sorted_by(words, inputs.get(name)) for name, words in found.items()):
        return []
    plain = [each for name, each in inputs.items() if each.dtype.kind == "f" and not counts_rows(found[name])]
    like, many = _alike(goal), sum(_alike(each) >= ALIKE for each in plain)
    if like >= ALIKE:
        what = f"the target goes on from row to row, with a correlation of {like:.2f}"
    elif many > max(1, len(plain) / 2):
        what = f"{many} of {len(plain)} columns of numbers go on from row to row"
    else:
        return []
    return [
        f"Neighbouring rows are alike ({what}), and those that test are drawn from between the others: figures are "
        f"better than they would be for other rows. Where the order is that of time, {CURE}; where rows belong "
        "together, --group COLUMN keeps them in one part."
    ]


def _sorted_by(words: Sequence[str], values: np.ndarray | None) -> bool:
    """Whether the file is sorted by a column; one of rising numbers without a double may be the name of a row."""
    measured = values is not None and values.dtype.kind == "f" and bool((values != values.round()).any())
    if values is None or values.dtype.kind != "f":
        values = np.unique(words, return_inverse=True)[1]
    return _sorted(values) and (measured or len(set(words)) < len(words))


def _sorted(values: np.ndarray) -> bool:
    """Whether values rise or fall throughout, or the same stand together."""
    changes = np.diff(values) != 0
    return bool(_way(values)) or int(changes.sum()) + 1 == len(np.unique(values)) < len(values) / 2


def _alike(values: np.ndarray) -> float:
    """The correlation of the ranks of neighbours; 0 where chance may have made it."""
    there = ranks(values[~np.isnan(values)])
    there = there - there.mean() if len(there) else there
    like = float((there[1:] * there[:-1]).sum() / max((there**2).sum(), 1e-12))
    return like if like * len(there) ** 0.5 > _SURE else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """The place of each among all, the mean place of those that are the same."""
    _, of, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[of.reshape(-1)]
