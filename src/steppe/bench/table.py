"""The figures of a benchmark as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from steppe._command import tables

COLUMNS = ("method", "passes", "time", "quartiles", "CPU time", "buffers", "memory")


_LUXURY = ("quartiles", "buffers")
"""Columns that go first where space is short."""


def table(record: dict[str, Any], width: int = 100) -> Table:
    """One line per method: ratios to the base's step, and buffers in sizes of the trained parameters."""
    rows = [dict(zip(COLUMNS, cells(row), strict=True)) for row in [record["base"], *record["methods"].values()]]
    wide = {name: 2 + max(len(name), *(len(row[name]) for row in rows)) for name in COLUMNS}
    for name in _LUXURY:
        if sum(wide.values()) > width:
            del wide[name]
    shown = tables.table(wide, no_wrap=True)
    shown.columns[0].no_wrap = False
    shown.title, shown.title_justify, shown.title_style = title(record), "left", ""
    for row in rows:
        shown.add_row(*(row[name] for name in wide))
    return shown


def title(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    subject, about = record["subject"], record["provenance"]
    base = record["base"]["step_ms"]["median"]
    row = record["settings"].get("row", 1)  # records from before had rows of one alone
    model = f"{subject['model']} on {subject['task']}" if "task" in subject else subject["model"]
    return (
        f"{model}, {subject['trained'] / 1e6:.3g} M trained parameters, batch {subject['batch_size']}, "
        f"{subject['dtype']}, {about['device']}, {about['threads']} thread(s): base {base:.4g} ms a step, "
        f"{record['settings']['turns']} turns" + (f" in rows of {row} steps" if row > 1 else "")
    )


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line."""
    time, measured = row["time_ratio"], "memory_bytes" in row
    memory = _mib(row["memory_bytes"]) if measured else ""
    if row["label"] == "base":
        return ("base", "1", "1", "", "1", "", memory)
    return (
        row["label"], f"{row['passes']:.2f}", f"{time['median']:.3f}", f"{time['low']:.2f}-{time['high']:.2f}",
        f"{row['busy_ratio']['median']:.3f}", f"{row['buffers']:.2f}" if measured else "", memory,
    )  # fmt: skip


def _mib(size: int) -> str:
    """Small ones by their first digits, that no two read 0.0."""
    shown = size / 2**20
    return f"{shown:.1f} MiB" if shown >= 1 else f"{shown:.2g} MiB"
