"""The prediction beside the truth, for the base and the best method, in test windows that the runs have kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steppe.compare.analysis.groups import BASE, Record
from steppe.compare.analysis.verdict import best_row
from steppe.compare.report.bands import Band
from steppe.compare.report.charts import NARROW, lines


def shown(summary: Mapping[str, Any], records: Iterable[Record]) -> dict[str, Any] | None:
    """A picture for each kept window of one seed, None where no run kept any."""
    rows = [row for row in summary["rows"] if row["gain"]]
    best = best_row(rows) if rows else None
    names = {BASE: "base"} | ({best["method"]: best["label"]} if best else {})
    final = [run for run in records if run["phase"] == "final" and run["variant"] == "plain" and run.get("forecast")]
    runs = {run["method"]: run for run in final if run["seed"] == min(r["seed"] for r in final)}
    if BASE not in runs:
        return None
    of = (summary["spec"].get("targets") or ["The first target"])[0]
    said = f"{of} in the test part, as scaled for training, seed {runs[BASE]['seed']}; 0 is the first row forecast."
    found = [name for name in names if name in runs]
    windows = zip(*(runs[name]["forecast"]["windows"] for name in found), strict=True)
    return {"said": said, "charts": [_window(each, [names[name] for name in found]) for each in windows]}


def _window(each: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    first = each[0]
    curves = [("truth", _band(first["at"], first["truth"]), "truth")]
    kinds = ["base", *["method"] * (len(names) - 1)]
    curves += [(name, _band(w["to"], w["told"]), kind) for name, w, kind in zip(names, each, kinds, strict=True)]
    return lines(curves, f"from row {first['row']} of the test part", "rows ahead", NARROW)


def _band(x: list[float], y: list[float]) -> Band:
    return Band(x, y, y, y)
