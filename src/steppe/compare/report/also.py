"""The table of what else was measured on the final weights, in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from steppe._command import tables
from steppe.compare.analysis.also import in_order
from steppe.compare.analysis.wording import Words


def cells(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads, and rows of text: the figure, and behind it in brackets the difference to the base, in its own unit."""
    found = summary["also"]
    words = [_words(column, summary) for column in found["columns"]]
    heads = [f"{c['head']}, %" if w.judge.percent else c["head"] for c, w in zip(found["columns"], words, strict=True)]
    rows = []
    for row in in_order(summary):
        figures = [row["figures"][column["name"]] for column in found["columns"]]
        rows.append([row["label"], *(_cell(w, f) for w, f in zip(words, figures, strict=True))])
    return ["method", *heads], rows


def _words(column: Mapping[str, Any], summary: Mapping[str, Any]) -> Words:
    """How the figures of a column are written: as many digits as they need, differences in their unit."""
    rows = [{"final": row["figures"][column["name"]]} for row in summary["also"]["rows"]]
    base = next((r["figures"][column["name"]] for r in summary["also"]["rows"] if r["method"] == "base"), None)
    return Words({"rows": rows, "metric": column["metric"], "best_baseline": "base", "baselines": {"base": base}})


def of_what(summary: Mapping[str, Any]) -> str:
    """What the differences are in, where not all are points: to be put behind `than the base`."""
    percent = all(column["metric"]["percent"] for column in summary["also"]["columns"])
    return "" if percent else " (in points of columns in %, else in per cent of the base’s mean)"


def _cell(words: Words, figure: Mapping[str, Any] | None) -> str:
    delta = words.gain(figure["delta"]) if figure and figure["delta"] else ""
    return words.figure(figure) + (f" ({delta})" if delta else "")


def table(summary: Mapping[str, Any]) -> Table | None:
    """The table for a terminal; None where nothing was asked for."""
    if not summary.get("also"):
        return None
    heads, rows = cells(summary)
    made = tables.table(heads, ruled=True, overflow="fold", vertical="bottom")
    made.padding = (0, 1, 0, 0)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    way = f"better (+) or worse (−) than the base{of_what(summary)}"
    made.caption = f"On the final weights; in brackets {way}, paired by seed."
    return made
