"""`steppe evaluate`: flags in, table and one JSON out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from steppe._command import tables
from steppe._command.app import app, hush, print_json, refusing
from steppe._command.files import free_target, keep_figures, named_after
from steppe._command.flags import given, help_of, taking
from steppe.evaluate.request import Request

_OUT = "JSON file for the results (results/evaluate/<model>-<tasks>-<settings given>.json)."


@app.command(short_help="Measure a language model on multiple-choice tasks.")
@taking(Request, without=("model",))
def evaluate(
    flags: dict[str, Any],
    model: Annotated[str, typer.Argument(help=help_of(Request, "model"))],
    out: Annotated[str | None, typer.Option(help=_OUT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON on stdout.")] = False,
) -> None:
    """Measure a language model or an adapter on multiple-choice tasks with lm-eval, with standard errors."""
    asked = given(flags, Request)
    if "delimiter" in asked:
        asked["delimiter"] = asked["delimiter"].replace("\\n", "\n")
    with refusing():
        what = [asked.get("adapter") or model, *asked.get("tasks", ())]
        name = named_after(what, {key: each for key, each in asked.items() if key not in ("adapter", "tasks")})
        target = free_target(Path(out or f"results/evaluate/{name}.json"))
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_MININTERVAL", "30")  # read on import: few lines in a log file
        hush("lm_eval", "transformers", "huggingface_hub", "datasets")
        request = Request(model=model, **asked)
        from steppe.evaluate.run import evaluate as measure  # after the checks: it takes seconds to import

        record = measure(request)
    if as_json:
        print_json(record)
    else:
        Console().print(table(record))
        if record["cut"]["note"]:
            Console().print(record["cut"]["note"], highlight=False, markup=False)
    with refusing():
        keep_figures(target, record)
    if not as_json:
        typer.echo(f"Results: {target}")


def table(record: dict[str, Any]) -> Table:
    """One line per metric of each task and group, as value and standard error in percent where it is a share."""
    shown = tables.table(("task", "metric", "value", "std. error", "chance", "examples"), left=2, no_wrap=True)
    for names in shown.columns[:2]:
        names.no_wrap, names.overflow = False, "fold"  # where space is short: a figure is never cut
    for name, row in [*record["tasks"].items(), *record["groups"].items()]:
        for metric, figure in row["metrics"].items():
            counted = f"{row['examples']} of {row['of']}" if "of" in row else ""
            cells = [_shown(figure[key], _is_share(metric)) for key in ("value", "stderr")]
            shown.add_row(name, metric, *cells, _shown(row.get("chance"), True), counted)
    return shown


def _is_share(metric: str) -> bool:
    """Of metrics that are known for one: bits per byte may be below 1, too, and BLEU is in percent already."""
    return "acc" in metric or metric.partition(",")[0] in ("exact_match", "em", "f1", "mcc")


def _shown(value: Any, share: bool) -> str:
    """A share in percent, any other figure as it is."""
    if not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{100 * value:.2f} %" if share else f"{value:.4g}"
