"""Rows of a file or of a hub data set: what the readers of texts are made of."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from steppe._command.files import content, ending
from steppe._command.lookup import first_line, nearest
from steppe.text.hub import silent

HUB = "hf:"
PARQUET = (".parquet", ".pq")
_JSON = (".jsonl", ".json")
Row = dict[str, Any]
_TABLES: dict[str, dict[str, Any]] = {
    ".csv": {},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},  # a quotation mark between tabs is one of the text
}
_LINE_END = re.compile("\r\n|\r|\n")  # and not the other ends of str.splitlines, which stand inside of texts
_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_LONGEST = 2**31 - 1  # characters of a cell, the most that csv takes on every system


def rows(source: str, split: str | None = None) -> list[Row]:
    """The rows of a ``.jsonl``, ``.csv`` or ``.tsv`` file or of ``hf:DATASET[:CONFIGURATION]``, by their columns."""
    if source.startswith(HUB):
        return _hub_rows(source, split or "train")
    _refuse_split(source, split)
    path = Path(source)
    if ending(path) in _JSON:
        found = list(_json_rows(path))
    elif ending(path) in _TABLES:
        found = list(_table_rows(path))
    elif ending(path) in PARQUET:
        found = parquet(path).to_pylist()
    else:
        raise ValueError(f"{source} has no columns; expected .jsonl, .csv, .tsv or .parquet at its end, or hf:DATASET")
    return _some(found, source)


def label_lines(source: str, split: str | None = None) -> list[tuple[str, str]] | None:
    """Label and text of every line "LABEL text"; None where the file's ending says that it is a table."""
    path = Path(source)
    if ending(path) in (*_JSON, *_TABLES, *PARQUET):
        return None
    _refuse_split(source, split)
    return _some(list(_pieces(path)), source)


def column(found: list[Row], name: str, source: str, flag: str, empty: str = "taken") -> list[str]:
    """The values of column ``name`` as text; empty ones are "taken" or "refused".

    ``source`` and ``flag``, what names the column on a command line, are for the messages.
    """
    known = list(found[0])
    if name not in known and not any(name in row for row in found):
        raise ValueError(f"{source} has no column {name!r}, its columns are {', '.join(known)}; name it with --{flag}")
    return [_text(row.get(name), number, name, source, empty) for number, row in enumerate(found, 1)]


def _text(value: Any, number: int, name: str, source: str, empty: str) -> str:
    if value is None or isinstance(value, (dict, list)):
        chat = "; write a chat as columns, the last answer as the response and what comes before as the prompt"
        raise ValueError(
            f"{source}: example {number} has {_short(repr(value))} in column {name!r}; expected text or a number"
            + (chat if isinstance(value, list) else "")
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{source}: example {number} has {value!r} in column {name!r}, which stands for a missing value; "
            "fill it or leave the example out"
        )
    text = str(value).strip() if not isinstance(value, str) else value
    if empty == "refused" and not text.strip():
        raise ValueError(f"{source}: example {number} has nothing in column {name!r}; fill it or leave the example out")
    return text


def _pieces(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_LINE_END.split(_decoded(path)), 1):
        if line.strip():
            label, *text = line.strip().split(maxsplit=1)
            if not text:
                raise ValueError(f"{path} line {number} is {_short(line)!r}; expected a label, a space and the text")
            yield label, text[0]


def parquet(path: Path) -> Any:
    """The table in a Parquet file, as pyarrow has it."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_table
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path} needs the package pyarrow; run: pip install 'steppe[study,parquet]', or save it as CSV"
        ) from error
    try:
        return read_table(path)
    except (ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file; is it whole?") from error


def _json_rows(path: Path) -> Iterator[Row]:
    """The objects of a file, one a line or all in a list."""
    text = _decoded(path)
    if text.lstrip().startswith("["):
        yield from _json_list(text, path)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} is not JSON ({error}); expected one object per line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number} is {_short(line)!r}; expected an object with the columns as keys")
        yield row


def _json_list(text: str, path: Path) -> list[Row]:
    try:
        found: list[Any] = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); expected a list of objects, or one object per line") from error
    other = next((row for row in found if not isinstance(row, dict)), None)
    if other is not None:
        raise ValueError(f"{path} lists {_short(repr(other))}; expected objects with the columns as keys")
    return found


def delimiter(text: str) -> str:
    """What stands between the cells of a CSV file, by its header; the comma where nothing tells."""
    head = text.lstrip().split("\n", 1)[0]
    return max(",;\t|", key=head.count)


def _table_rows(path: Path) -> Iterator[Row]:
    text, kind = _decoded(path), _TABLES[ending(path)]
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, **{"delimiter": delimiter(text)} | kind)
    limit = csv.field_size_limit(_LONGEST)
    try:
        _refuse_repeated(reader.fieldnames or (), path)
        for row in reader:
            if None in row:
                raise ValueError(f"{path} line {reader.line_num} has more cells than the header's {len(row) - 1}")
            yield row
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is no row of a table ({error})") from error
    finally:
        csv.field_size_limit(limit)


def _refuse_repeated(columns: Sequence[str], path: Path) -> None:
    for name in columns:
        if name and columns.count(name) > 1:
            raise ValueError(f"{path} has {columns.count(name)} columns {name!r}; give each column its own name")


def _hub_rows(source: str, split: str) -> list[Row]:
    name, _, configuration = source.removeprefix(HUB).partition(":")
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(f"{source} needs the package datasets; run: pip install 'steppe[study,finetune]'") from error
    if silent(name, "dataset"):
        datasets.config.HF_HUB_OFFLINE = True  # for this process: what was downloaded before is found at once
    try:
        parts = datasets.load_dataset(name, configuration or None)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot get {source}: {first_line(error)}; give hf:DATASET of the hub, or a file") from error
    if split not in parts:
        raise ValueError(f"{source} has no split {split!r}; {nearest(split, parts)}")
    return _some([_with_names(row, parts[split].features) for row in parts[split]], source)


def _with_names(row: Row, features: Any) -> Row:
    """Classes by the names that the data set gives them; -1 stands for a label that is kept secret."""
    named = {key: features[key].int2str for key in row if hasattr(features[key], "int2str")}
    return {key: named[key](value) if key in named and value >= 0 else value for key, value in row.items()}


def _decoded(path: Path) -> str:
    try:
        raw = content(path)
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder; give the file in it that holds the data") from error
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}); give a file, or hf:DATASET of the hub") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if _UTF8.search(raw) or b"\0" in raw:
            line = len(re.split(rb"\r\n|\r|\n", raw[: error.start]))
            raise ValueError(f"{path} line {line} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
        return _western(raw)


def _western(raw: bytes) -> str:
    """As the older sets of labelled lines are written, and tables that a spreadsheet saves on Windows."""
    try:
        return raw.decode(
            "cp1252"
        )  # latin-1 with quotation marks, dashes and the euro where that has control characters
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _some(found: list[Any], source: str) -> list[Any]:
    if not found:
        raise ValueError(f"{source} holds no examples; expected at least one")
    return found


def _refuse_split(source: str, split: str | None) -> None:
    if split is not None:
        raise ValueError(f"{source} is a file and has no split {split!r}; leave the split out, or give hf:DATASET")


def _short(line: str) -> str:
    return line if len(line) <= 40 else line[:37] + "..."
