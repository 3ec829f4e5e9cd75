"""A file of columns, CSV or Parquet, as words by column; what is a number is read as one where it is wanted."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from steppe._command.files import content, ending
from steppe._command.lookup import by_likeness, near
from steppe._words import count
from steppe.text.rows import PARQUET, delimiter, parquet

Columns = dict[str, list[str]]
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?"))
"""What a cell may hold, in any case of letters, where a value is missing."""

SHOWN = 10
"""Columns that a sentence names, at most."""

_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.IGNORECASE)
_UNNAMED = ("", "Unnamed: 0")
"""What pandas calls the numbers that it writes before the rows."""


def check(place: str) -> None:
    """Refuse what is no file."""
    if not Path(place).expanduser().is_file():
        raise ValueError(f"{place} is not a file; give the path of one")


def read(place: str) -> Columns:
    """The columns of a CSV or Parquet file by name, in its order, every cell as it is written.

    Where semicolons stand between the cells, a comma in a column of numbers is a decimal point. A first column without
    a name that counts the rows is none of the data, nor is a nameless one without a value.
    """
    check(place)
    path = Path(place).expanduser()
    names, rows = _parquet(path) if ending(path) in PARQUET else _csv(path)
    if not rows:
        raise ValueError(f"{place} has a header and no rows below it; give a file with data")
    there = [
        i for i, name in enumerate(names) if name or any(row[i] for row in rows)
    ]  # what a last comma makes is none
    twice = next((names[i] for i in there if names.count(names[i]) > 1), None)
    if twice is not None:
        raise ValueError(f"{place} has two columns {twice!r}; give each a name of its own")
    found = {names[i]: [row[i] for row in rows] for i in there}
    if len(names) > 1 and names[0] in _UNNAMED and counts_rows(found[names[0]]):
        del found[names[0]]
    return found


def counts_rows(words: Sequence[str]) -> bool:
    """Whether a column is the number of the row, from 0 or from 1."""
    return any(all(word == str(row) for row, word in enumerate(words, first)) for first in (0, 1))


def text_of(path: Path) -> str:
    """What is in a file of text."""
    raw = content(path)
    if not raw.strip():
        raise ValueError(f"{path} is empty; give a file with data")
    if b"\0" in raw:
        raise ValueError(
            f"{path} is not a text file (it holds zero bytes); expected text, "
            "such as CSV; a sheet or a pickle can be saved so, and arrays come from a function of yours (docs/data.md)"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def _csv(path: Path) -> tuple[list[str], list[list[str]]]:
    text = text_of(path)
    between = delimiter(text)
    try:
        lines = [line for line in csv.reader(io.StringIO(text), delimiter=between, strict=True) if line]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file ({error}); expected rows of cells") from error
    names = [name.strip() for name in lines[0]]
    for row, line in enumerate(lines[1:], 1):
        if len(line) != len(names):
            cells = count(len(line), "cell")
            raise ValueError(f"{path}: row {row} has {cells} where the header has {len(names)}; mend it")
    rows = [[cell.strip() for cell in line] for line in lines[1:]]
    return names, _with_points(rows) if between == ";" else rows


def _with_points(rows: list[list[str]]) -> list[list[str]]:
    """The rows with points for the decimal commas of columns of numbers."""
    columns = [_pointed(column) for column in zip(*rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _pointed(column: Sequence[str]) -> Sequence[str]:
    numeric = all(_COMMA.fullmatch(word) or number(word) is not None for word in column)
    return [word.replace(",", ".") for word in column] if numeric else column


def _parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    table = parquet(path)
    cells = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return list(table.column_names), [list(row) for row in zip(*cells, strict=True)]


def without(found: Columns, names: Collection[str]) -> Columns:
    """All columns but those that are to be left out."""
    for name in names:
        need(found, name, "leave-out")
    return {name: words for name, words in found.items() if name not in names}


def need(found: Mapping[str, Sequence[str]], name: str, flag: str) -> str:
    """The name of a column that is there."""
    if name not in found:
        meant = near(name, list(found))
        hint = f"did you mean {meant!r}? " if meant else ""
        raise ValueError(f"no column {name!r} for --{flag}; {hint}the columns are {some(by_likeness(name, found))}")
    return name


def some(names: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def missing(word: str) -> bool:
    """Whether a cell stands for a missing value."""
    return word.lower() in MISSING


def number(word: str) -> float | None:
    """The cell as a number, NaN where it is missing, None where it is a word."""
    if missing(word):
        return math.nan
    try:
        return float(word) if "_" not in word else None  # Python's own 1_000 is a name in a file
    except ValueError:
        return None


def numbers(words: Sequence[str]) -> np.ndarray | None:
    """The column as numbers, NaN where they are missing; None where a cell is a word or all are missing."""
    found = [number(word) for word in words]
    if any(value is None for value in found):
        return None
    values = np.array(found, dtype=np.float64)
    return None if np.isnan(values).all() else values


MOSTLY, SEVERAL = 0.8, 10
"""Share of the cells from which on a column is one of numbers with something else among them, if these are more
different numbers than so many: `0, 1, 2, 3+` are categories."""


def intruder(words: Sequence[str]) -> tuple[int, str, int]:
    """The first cell that is a word, its row from 1, and how many there are among numbers; 0 if it is one of many."""
    strange = [(row, word) for row, word in enumerate(words, 1) if number(word) is None]
    if not strange:
        return 0, "", 0
    known = [word for word in words if not missing(word)]
    plain = {word for word in known if number(word) is not None}
    mostly = len(strange) <= (1 - MOSTLY) * len(known) and len(plain) > SEVERAL
    return *strange[0], len(strange) if mostly else 0


_WRITTEN = re.compile(
    r"[€$£¥]?\s*[+-]?\d[\d.,'\s]*[%‰€$£¥]?|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\S*)?|\d{1,2}:\d\d(:\d\d)?"
)
"""Numbers with thousands, a decimal comma, per cent or a currency; dates; times of the day."""


def written(words: Sequence[str]) -> tuple[int, str] | None:
    """Row and first word of a column of words that read as numbers or dates: `1,000`, `57 %`, `2024-05-31`."""
    known = [(row, word) for row, word in enumerate(words, 1) if not missing(word)]
    strange = [(row, word) for row, word in known if number(word) is None]
    telling = sum(_WRITTEN.fullmatch(word) is not None for _, word in strange)
    several = len({word for _, word in strange}) > SEVERAL
    return strange[0] if several and telling + len(known) - len(strange) >= MOSTLY * len(known) else None


def first_word(words: Sequence[str]) -> tuple[int, str]:
    """The first cell that is no number, and its row from 1."""
    return next((row, word) for row, word in enumerate(words, 1) if number(word) is None or missing(word))
