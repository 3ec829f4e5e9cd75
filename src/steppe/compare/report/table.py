"""The table of a comparison in the terminal, with the verdict and the notes under it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from steppe._command import tables
from steppe.compare.analysis.wording import (
    ABSENT,
    FORMS,
    Words,
    broken,
    chosen,
    epochs,
    figures,
    means,
    plain,
    share,
    times,
    with_lengths,
)  # fmt: skip

Row = Mapping[str, Any]
ALWAYS = 0
CLOCKS = {"processor": " (the processor's)", "wall": " (wall clock)"}  # of results of 0.1.0 it is not known


@dataclass(frozen=True)
class Column:
    """A column: its two-line header, how a cell is written, how soon it is given up where space is short."""

    header: str
    cell: Callable[[Row], str]
    luxury: int = ALWAYS

    def width(self, rows: Sequence[Row]) -> int:
        """The widest of the header's lines and the cells."""
        texts = [self.header, *(self.cell(row) for row in rows)]
        return max(len(line) for text in texts for line in text.split("\n"))


def columns(summary: Mapping[str, Any]) -> list[Column]:
    """The columns; without what no row has, and the difference to the base where it would repeat the gain."""
    words = Words(summary)
    name, unit = words.judge.title, " %" if words.judge.percent else ""
    timed = any(row["time_ratio"] for row in summary["rows"])
    delta = Column(f"− base\n{words.unit}", lambda row: words.gain(row["delta"], to="base"), 4)
    found = [
        Column("\nmethod", lambda row: broken(row["label"]) + (" †" if row.get("diverged") else "")),
        Column("\nρ", lambda row: chosen(row)),
        *([Column("\nepochs", epochs)] if with_lengths(summary) else []),
        _form(words, summary, "final", f"{name}\n{unit.strip()}", 2),
        _form(words, summary, "early", f"stopped\nearly{unit}", 3),
        _form(words, summary, "averaged", f"aver-\naged{unit}", 4),
        _form(words, summary, "lawa", f"latest\naver.{unit}", 5),
        *([delta] if summary["best_baseline"] != "base" else []),
        Column(f"gain\n{words.unit}", lambda row: words.gain(row["gain"])),
        Column("\nkept", lambda row: share(row["kept"]), 2),
        Column("passes\n/step", lambda row: plain(row["passes"]), 1 if timed else ALWAYS),
        *([Column("\ntime", lambda row: times((row["time_ratio"] or {}).get("median")))] if timed else []),
        Column("\nmemory", lambda row: times(row["memory_ratio"]), 6),
        Column("sharp-\nness", lambda row: figures((row["sharpness"] or {}).get("mean")), 5),
    ]
    return [each for each in found if each.luxury == ALWAYS or any(each.cell(row) != ABSENT for row in summary["rows"])]


def table(summary: Mapping[str, Any], width: int = 100) -> Table:
    """The table of a summary.

    Args:
        summary: what `summarise` returns.
        width: columns of the terminal. Where they do not suffice, first the space between columns goes, then
            memory, sharpness, the difference to the base, averaged (both ways) and early-stopped figures (unless they
            count here), the share kept and the passes; name, metric, gain and cost stay.
    """
    rows = summary["rows"]
    shown, space = _fit(columns(summary), rows, width)
    made = tables.table((column.header for column in shown), ruled=True, no_wrap=True, vertical="bottom")
    made.padding = (0, space - 1, 0, 0)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        last_baseline = row["method"] == "base" and following is not None and following["method"] != "base"
        cells = [Text(column.cell(row)) for column in shown]
        made.add_row(*cells, style=_style(row), end_section=last_baseline)
    return made


def _fit(found: list[Column], rows: Sequence[Row], width: int) -> tuple[list[Column], int]:
    """The columns that fit, and the space between them (1 or 2)."""
    for limit in range(max(column.luxury for column in found), -1, -1):
        kept = [column for column in found if column.luxury <= limit]
        for space in (2, 1):
            if sum(column.width(rows) + space for column in kept) + 2 <= width:
                return kept, space
    return kept, 1


def _form(words: Words, summary: Mapping[str, Any], form: str, header: str, luxury: int) -> Column:
    """The figures in a form, which space may not suffice for unless the methods are judged by it."""
    return Column(header, lambda row: words.figure(row.get(form)), ALWAYS if summary["judged"] == form else luxury)


def legend(summary: Mapping[str, Any], width: int = 100) -> str:
    """One line on what the columns mean; what the table has no room for is not explained."""
    form = "" if summary["judged"] == "final" else f", both {FORMS[summary['judged']]}"
    radii = {row["sharpness"]["rho"] for row in summary["rows"] if row["sharpness"]}
    at = f" at ρ = {radii.pop():g}" if len(radii) == 1 else ""
    shown = {line for column in _fit(columns(summary), summary["rows"], width)[0] for line in column.header.split("\n")}
    judge = Words(summary).judge
    percent, told = judge.percent, judge.title in shown
    named = {"time": f"time{CLOCKS.get(summary.get('clock', ''), '')}", "memory": "memory"}
    beside = " and ".join(said for name, said in named.items() if name in shown)
    said = [
        "" if told else f"figures: {judge.head}, {FORMS[summary['judged']]}",
        f"gain: over the best baseline{form}{'' if percent else ', in per cent of its mean'}, paired by seed",
        "− base: in per cent of the base's mean" if "− base" in shown and not percent else "",
        "kept: share of SAM's gain" if "kept" in shown else "",
        f"{beside}: ÷ base's" if beside else "",
        f"sharpness: L(w+ε) − L(w){at}" if "ness" in shown else "",
    ]
    return f"{means(summary)}. {'; '.join(filter(None, said))}."


def _style(row: Row) -> str:
    if row["method"] == "base":
        return "dim"
    return "bold" if row["gain"] and row["gain"].get("clear") == 1 and row["pareto"] else ""
