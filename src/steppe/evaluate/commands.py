"""`steppe evaluate`: flags in, table and one JSON out."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from steppe._command import tables
from steppe._command.app import app, hush, print_json, refusing
from steppe._command.files import free_target, keep_figures
from steppe._command.flags import given, help_of, taking
from steppe.evaluate.request import Request


@app.command(short_help="Measure a language model on multiple-choice tasks.")
@taking(Request, without=("model",))
def evaluate(
    flags: dict[str, Any],
    model: Annotated[str, typer.Argument(help=help_of(Request, "model"))],
    out: Annotated[str | None, typer.Option(help="JSON file for the results (results/evaluate/<model>.json).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON on stdout.")] = False,
) -> None:
    """Measure a language model or an adapter on multiple-choice tasks with lm-eval, with standard errors."""
    asked = given(flags, Request)
    if "delimiter" in asked:
        asked["delimiter"] = asked["delimiter"].replace("\\n", "\n")
    with refusing():
        slug = re.sub(r"[^\w.-]+", "-", asked.get("adapter") or model).strip("-.") or "model"
        target = free_target(Path(out or f"results/evaluate/{slug}.json"))
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
    with refusing():
        keep_figures(target, record)
    if not as_json:
        typer.echo(f"Results: {target}")


def table(record: dict[str, Any]) -> Table:
    """One line per metric of each task and group, as value and standard error in percent where it is a share."""
    shown = tables.table(("task", "metric", "value", "std. error", "chance", "examples"), left=2, no_wrap=True)
    for name, row in [*record["tasks"].items(), *record["groups"].items()]:
        for metric, figure in row["metrics"].items():
            counted = f"{row['examples']} of {row['of']}" if "of" in row else ""
            cells = (_percent(x) for x in (figure["value"], figure["stderr"], row.get("chance")))
            shown.add_row(name, metric, *cells, counted)
    return shown


def _percent(value: Any) -> str:
    """Shares in percent; other figures (perplexity, texts) as they are."""
    if not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{100 * value:.2f} %" if 0 <= value <= 1 else f"{value:.4g}"
