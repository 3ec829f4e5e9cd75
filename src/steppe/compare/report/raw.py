"""The raw numbers of a comparison as tables of text: what the report lets a reader unfold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steppe.compare.analysis.groups import Record, label, tuned
from steppe.compare.analysis.wording import ABSENT, SYMBOLS, count, figures, plain, plainly, short
from steppe.compare.judge import Judge, finite, of_records


@dataclass(frozen=True)
class Sheet:
    """A table of text; the first column names the row, which is a `row` and what `rest` says of it."""

    row: str
    rest: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def title(self) -> str:
        """How many rows of what: `1 final run`, `2 methods: cost of one step`."""
        return count(len(self.rows), self.row) + self.rest


RUN_HEADER = (
    "method", "ρ", "seed", "epochs", "validation", "test", "best epoch", "validation there", "test there",
    "passes/step", "sharpness", "seconds",
)  # fmt: skip
COST_HEADER = ("method", "ms per step", "time ÷ base’s", "low", "high", "memory ÷ base’s", "passes")


def sheets(records: Sequence[Record], cost: Mapping[str, Any] | None) -> list[Sheet]:
    """The final runs, the runs that chose rho, and the measured cost of a step; empty ones are left out."""
    judge = of_records(records)
    head = [f"{name}{' %' if judge.percent and name.startswith(('validation', 'test')) else ''}" for name in RUN_HEADER]
    found = [
        Sheet("final run", "", head, [_run(run, judge) for run in records if run["phase"] == "final"]),
        Sheet("run", " that chose a setting", head, [_run(run, judge) for run in records if run["phase"] == "tune"]),
        Sheet(
            "method",
            ": cost of one step",
            COST_HEADER,
            [_cost(*item) for item in ((cost or {}).get("methods") or {}).items()],
        ),
    ]
    return [sheet for sheet in found if sheet.rows]


def _run(run: Record, judge: Judge) -> list[str]:
    early = run.get("early") or {}
    return [
        label(run),
        _chosen(run),
        str(run["seed"]),
        str(run.get("epochs", ABSENT)),
        *(_written(judge, run, part) for part in ("val", "test")),
        str(early.get("epoch", ABSENT)),
        *(_written(judge, early, part) for part in ("val", "test")),
        plain(finite(run.get("passes_per_step")), 3),
        figures(finite((run.get("sharpness") or {}).get("value"))),
        plain(finite(run.get("seconds")), 1),
    ]


def _chosen(run: Record) -> str:
    name, value = tuned(run)
    text = short(value) if name == "rho" or value is None else f"{SYMBOLS[name]} {short(value)}"
    return ", ".join([text, *(f"{name} {plainly(each)}" for name, each in (run.get("more") or {}).items())])


def _cost(name: str, found: Mapping[str, Any]) -> list[str]:
    time = found.get("time_ratio") or {}
    figures = [found.get("step_ms"), time.get("median"), time.get("low"), time.get("high")]
    figures += [found.get("memory_ratio"), found.get("passes")]
    return [str(found.get("label") or name), *(plain(finite(figure)) for figure in figures)]


def _written(judge: Judge, record: Record, part: str) -> str:
    known = judge.of(record, part)
    return ABSENT if known is None else plain(judge.scale * known, 2 if judge.percent else 4)
