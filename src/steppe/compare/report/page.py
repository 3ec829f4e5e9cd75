"""The report of a comparison: one HTML file that needs nothing but itself."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from steppe._command.files import write_text
from steppe.compare.analysis import amounts, wording
from steppe.compare.analysis.groups import Record, group, tuned
from steppe.compare.judge import finite
from steppe.compare.report import also, charts, forecast
from steppe.compare.report.raw import sheets
from steppe.methods import METHODS

Row = Mapping[str, Any]


def write(summary: Mapping[str, Any], records: Iterable[Record], cost: Mapping[str, Any] | None, path: Path) -> Path:
    """Write the report and give its path; a reader sees the old file or the new one, never a half of either."""
    write_text(path, html(summary, list(records), cost))
    return path


def html(summary: Mapping[str, Any], records: Sequence[Record], cost: Mapping[str, Any] | None) -> str:
    """The report as one string of HTML."""
    page = _environment().get_template("report.html")
    return page.render(
        style=_style(),
        s=summary,
        forest=_forest_of(summary),
        words=wording.Words(summary),
        **_plots(summary, records),
        sheets=sheets(_sorted(records), cost),
        also=also.cells(summary) if summary.get("also") else None,
        of_what=also.of_what(summary) if summary.get("also") else "",
        **_facts(summary, records),
    )


@functools.cache
def _environment() -> Environment:
    """Where the templates are, which are compiled once in a process."""
    loader = PackageLoader("steppe.compare.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"say": wording}
    environment.filters |= {"typeset": wording.typeset}
    return environment


def _style() -> Markup:
    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, "report.css")[0])


def _plots(summary: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    points = charts.named_points(summary)
    cost = [charts.against_cost(summary, points, width) for width in (charts.WIDE, charts.NARROW)] if points else None
    plots: dict[str, Any] = {"cost": cost, "forecast": forecast.shown(summary, records)}
    plots |= charts.overlays(group(records), summary["rows"])
    return {"points": points, "whiskers": charts.WHISKERS, "plots": plots}


def _facts(summary: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """What the page says about the runs as a whole."""
    provenance: dict[str, list[str]] = {}
    for run in _sorted(records):
        for name, value in (run.get("provenance") or {}).items():
            if name != "schema" and str(value) not in provenance.setdefault(name, []):
                provenance[name].append(str(value))
    return {
        "tuned_rows": [row for row in summary["rows"] if row["method"] != "base" or row["tuning"]],
        "methods": [row for row in summary["rows"] if row["method"] != "base"],
        "base": next((row for row in summary["rows"] if row["method"] == "base"), None),
        "runs": _counted(records),
        "settings": {run["method"]: run.get("settings") or {} for run in records},
        "seconds": sum(finite(run.get("seconds")) or 0.0 for run in {_trained(run): run for run in records}.values()),
        "finished": max((str(run.get("finished") or "") for run in records), default="")[:10],
        "provenance": provenance,
        "papers": {row["method"]: _paper(row["method"]) for row in summary["rows"]},
        "spec": dict(_flat(_heard(summary["spec"]))),
        "examples": amounts.said(summary.get("examples") or {}),
        "groups": amounts.said(summary.get("groups") or {}),
        "symbols": wording.symbols(summary["rows"]),
        "selected": wording.selected(summary["rows"]),
        "lengths": wording.with_lengths(summary),
        "memory": any(row["memory_ratio"] for row in summary["rows"]),
        "radii": sorted({row["sharpness"]["rho"] for row in summary["rows"] if row["sharpness"]}),
    }


def _trained(run: Record) -> str:
    """The training behind a record: what was trained once has one for each use that was made of it."""
    return str(run.get("run_id") or id(run))


def _counted(records: Iterable[Record]) -> dict[str, int]:
    """How many trainings there are, how many of them chose, how many count, and how many did both."""
    chose, final = ({_trained(run) for run in records if run["phase"] == phase} for phase in ("tune", "final"))
    return {"all": len(chose | final), "tune": len(chose), "final": len(final), "both": len(chose & final)}


def _paper(method: str) -> dict[str, str]:
    """The paper of a method, cut at its number on arXiv; empty for a method unknown to the registry."""
    row = METHODS.get(method.partition(":")[0])
    if row is None:
        return {}
    pieces = re.split(r"arXiv (\d{4}\.\d{4,5})", row.paper, maxsplit=1)
    return dict(zip(("before", "number", "after"), [*pieces, "", ""][:3], strict=True))


def _sorted(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda r: (r["method"], r["variant"], tuned(r)[1] or 0, r["seed"]))


def _heard(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that this comparison listened to: those of LoRA only where there is any."""
    unheard = {"labels", "out"}
    if not str(spec.get("model", "")).startswith("hf:"):
        unheard |= {"adapt", *(name for name in spec if name.startswith("lora_"))}
    elif spec.get("adapt") == "full":
        unheard |= {name for name in spec if name.startswith("lora_")}
    if spec.get("epochs_grid"):
        unheard.add("epochs")
    if spec.get("optimizer") in ("adamw", "amsgrad"):
        unheard.add("momentum")
    return {name: value for name, value in spec.items() if name not in unheard}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as `outer.inner`: text."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield prefix + name, ", ".join(map(wording.plainly, value))
        elif value is not None:
            yield prefix + name, wording.plainly(value)


def _forest_of(summary: Mapping[str, Any]) -> Any:
    """A function that draws a gain as a small interval on a scale shared by all rows."""
    gains = [row["gain"] for row in summary["rows"] if row["gain"]]
    ends = [g["mean"] + sign * (g["ci95"] or 0) for g in gains for sign in (-1, 1)]
    sizes = sorted(abs(g["mean"]) + (g["ci95"] or 0) for g in gains) or [0.0]
    reach = 2 * max([*(g["mean"] for g in gains), sizes[len(sizes) // 2]])  # a method that fails must not squeeze all
    low, high = max(min([0.0, *ends]), -reach), min(max([0.0, *ends]), reach)

    def place(value: float) -> float:
        return 4 + 92 * (min(max(value, low), high) - low) / (high - low or 1.0)

    def forest(gain: Mapping[str, Any]) -> Markup:
        half = gain["ci95"] or 0.0
        left, middle, right = (place(gain["mean"] + k * half) for k in (-1, 0, 1))
        sure = " sure" if gain.get("clear") == 1 else ""
        return Markup(
            f'<svg class="forest{sure}" viewBox="0 0 100 16" width="84" height="16" aria-hidden="true">'
            f'<line class="zero" x1="{place(0):.1f}" x2="{place(0):.1f}" y1="0" y2="16"/>'
            f'<line class="bar" x1="{left:.1f}" x2="{right:.1f}" y1="8" y2="8"/>'
            f'<circle cx="{middle:.1f}" cy="8" r="3.5"/></svg>'
        )

    return forest
