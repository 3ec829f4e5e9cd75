"""`steppe evaluate`: flags in, table and one JSON out."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from steppe._command.app import BadInputError, app, refusing
from steppe._command.files import finite, write_json
from steppe._command.flags import given, help_of, taking
from steppe.evaluate.request import Request


@app.command()
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
    with refusing(), _needing_the_extra():
        target = _target(out, asked.get("adapter") or model)
        _hush()
        request = Request(model=model, **asked)
        from steppe.evaluate.run import evaluate as measure  # after the checks: it takes seconds to import

        record = measure(request)
    _show(record, as_json)
    _save(target, record)
    if not as_json:
        typer.echo(f"Results: {target}")


@contextmanager
def _needing_the_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("steppe"):
            raise
        raise ValueError(
            f"this needs {error.name}, which is not installed; run: pip install 'steppe[study,evaluate]'"
        ) from error


def _hush() -> None:
    """lm-eval and its hosts log much; what matters comes back as one sentence."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # read on import: few lines in a log file
    for name in ("lm_eval", "transformers", "huggingface_hub", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _target(out: str | None, source: str) -> Path:
    """The file to write, found to be writable before hours are spent; nothing is made yet."""
    slug = re.sub(r"[^\w.-]+", "-", source).strip("-.") or "model"
    target = Path(out or f"results/evaluate/{slug}.json")
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name a file with --out")
    there = next(folder for folder in target.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {target} ({there} is no folder to write in); name another file with --out")
    return target


def _save(target: Path, record: dict[str, Any]) -> None:
    try:
        write_json(target, record)
    except OSError as error:
        raise BadInputError(
            f"the figures above could not be written to {target} ({error.strerror}); make room or name another --out"
        ) from error


def _show(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(finite(record), indent=1))
    else:
        Console().print(table(record))


def table(record: dict[str, Any]) -> Table:
    """One line per metric of each task and group, as value and standard error in percent where it is a share."""
    shown = Table(box=None, header_style="bold")
    for column in ("task", "metric", "value", "std. error", "chance", "examples"):
        shown.add_column(column, justify="left" if column in ("task", "metric") else "right", no_wrap=True)
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
