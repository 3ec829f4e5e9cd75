"""What else was measured on the final weights, as rows of means with intervals and differences to the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steppe._command.statistics import as_json, difference, estimate, paired
from steppe.compare.analysis.groups import BASE, Group
from steppe.compare.data.also import COLUMNS, SAID, Column
from steppe.compare.judge import Judge


def summarised(groups: Sequence[Group], judge: Judge) -> dict[str, Any]:
    """The part `also` of a summary; empty where nothing was asked for.

    Returns:
        `columns` (name, head, metric), `said` (what they are) and `rows`: method, variant, label and for each column
        the estimate over the seeds, with `delta`, the paired difference to the base, above zero for better.
    """
    measured = {name for each in groups for run in each.runs for name in run.get("also") or {}}
    asked = [name for name, columns in COLUMNS.items() if any(column.name in measured for column in columns)]
    if not asked:
        return {}
    columns = [column for name in asked for column in COLUMNS[name]]
    base = next((each for each in groups if (each.method, each.variant) == (BASE, "plain")), None)
    return {
        "columns": [{"name": c.name, "head": c.head, "metric": (c.judge or judge).as_dict()} for c in columns],
        "said": [SAID[name] for name in asked],
        "rows": [_row(each, base, columns, judge) for each in groups if not each.untrained],
    }


def _row(each: Group, base: Group | None, columns: Sequence[Column], judge: Judge) -> dict[str, Any]:
    figures = {column.name: _figure(each, base, column, column.judge or judge) for column in columns}
    return {"method": each.method, "variant": each.variant, "label": each.label, "figures": figures}


def _figure(each: Group, base: Group | None, column: Column, judge: Judge) -> dict[str, Any] | None:
    own = _values(each, column.name)
    pairs = paired(own, _values(base, column.name)) if base is not None and each is not base else []
    return as_json(estimate(list(own.values())), delta=as_json(difference([judge.sign * pair for pair in pairs])))


def _values(each: Group, name: str) -> dict[int, float]:
    return each.by_seed(lambda run: (run.get("also") or {}).get(name))


def in_order(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of `also` in the order of the comparison's."""
    rows = {(row["method"], row["variant"]): row for row in summary["also"]["rows"]}
    keys = [(row["method"], row["variant"]) for row in summary["rows"]]
    return [rows[key] for key in keys if key in rows]
