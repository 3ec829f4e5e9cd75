"""`steppe studies`: kept comparisons as an index, several beside one another, CSV of their runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steppe._command.app import app, print_json, refusing
from steppe._command.files import read_json
from steppe._command.tables import table
from steppe.compare.analysis.wording import ABSENT, Words, baseline, count
from steppe.compare.judge import finite, of_records

Summary = Mapping[str, Any]
LONG = 36
"""Letters of a folder's name beyond which it is broken, as the verdict beside it needs room too."""


@app.command(short_help="List the comparisons that are kept, or set some side by side.")
def studies(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of comparisons, or one of such.", show_default="results")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the runs as CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summaries as JSON.")] = False,
) -> None:
    """List the comparisons that are kept; set several beside one another; print their runs as CSV."""
    asked = folders or [Path("results")]
    with refusing():
        found = {folder: summary for each in asked for folder, summary in kept(each).items()}
        if not found:
            raise ValueError(f"{asked[0]} holds no comparison; give the --out of steppe compare, or a folder of such")
    if as_json:
        print_json({str(folder): summary for folder, summary in found.items()})
    elif as_csv:
        typer.echo(table_of_runs(list(found)), nl=False)
    else:
        one_by_one = len(asked) > 1 and len(found) == len(asked)
        Console().print(beside(found) if one_by_one else index(found))


def kept(place: Path) -> dict[Path, Summary]:
    """The comparisons in a folder: its own, or those of the folders in it."""
    if not place.is_dir():
        raise ValueError(f"{place} is no folder; give the --out of steppe compare, or a folder of such")
    inside = sorted(each for each in place.iterdir() if each.is_dir())
    folders = [place] if (place / "summary.json").is_file() else inside
    found = {folder: read_json(folder / "summary.json") for folder in folders}
    return {folder: summary for folder, summary in found.items() if isinstance(summary, dict) and "rows" in summary}


def index(found: Mapping[Path, Summary]) -> Table:
    """A line for each: where, on what, how many methods and seeds, what it came to."""
    made = table(("folder", "task", "methods", "seeds", "verdict"), ruled=True, left=2, overflow="fold")
    made.columns[4].justify = "left"
    made.columns[0].no_wrap = max(len(str(folder)) for folder in found) <= LONG  # to be copied into other commands
    for folder, summary in found.items():
        methods = sum(row["method"] != "base" for row in summary["rows"])
        words = str(folder), str(summary["task"]), str(methods), str(len(summary["seeds"])), summary["verdict"]
        made.add_row(*map(Text, words))
    return made


def beside(found: Mapping[Path, Summary]) -> Table:
    """Methods down, comparisons across: the gain of each over the best baseline there."""
    alone = len({folder.name for folder in found}) == len(found)
    places = (Text(f"{folder.name if alone else folder}\n{_of_what(summary)}") for folder, summary in found.items())
    made = table(("gain over the best baseline", *places), ruled=True, overflow="fold")
    gains = [{row["label"]: Words(s).gain(row["gain"]) for row in s["rows"] if row["gain"]} for s in found.values()]
    for label in dict.fromkeys(label for each in gains for label in each):
        made.add_row(Text(label), *(each.get(label, ABSENT) for each in gains))
    return made


def _of_what(summary: Summary) -> str:
    """What the gains are of, and over which baseline: `5 seeds; MSE, % better than the base`, a line each."""
    words, seeds = Words(summary), count(len(summary["seeds"]), "seed")
    over = f"\n{words.over} {baseline(summary['best_baseline'])}" if summary["best_baseline"] else ""
    return f"{seeds}\n{words.judge.title}, {words.unit}{over}"


COLUMNS = (
    "study", "task", "method", "variant", "phase", "seed", "rho", "mu", "sigma", "lr", "epochs", "more", "metric"
)  # fmt: skip
MEASURED = ("passes_per_step", "steps", "seconds", "finished")


def table_of_runs(folders: Sequence[Path]) -> str:
    """CSV with a line for each run behind the comparison that a folder shows.

    One that helped to choose a setting, phase "tune", and counts for the table too, phase "final", has two lines; so
    has one whose averaged weights stand for a method of their own.
    """
    from steppe.compare.engine import study

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "validation", "test", "best_epoch", "test_stopped_early", *MEASURED])
    for folder in folders:
        named = {"study": folder, "task": (read_json(folder / "spec.json") or {}).get("task")}
        writer.writerows(_line(run, named) for run in study.records_of(folder))
    return text.getvalue()


def _line(run: Mapping[str, Any], named: Mapping[str, Any]) -> list[Any]:
    judge, early = of_records([run]), run.get("early") or {}
    more = " ".join(f"{name}={value}" for name, value in (run.get("more") or {}).items())
    known = {**run, **named, "more": more, "metric": judge.name}
    figures = judge.of(run, "val"), judge.of(run, "test"), finite(early.get("epoch")), judge.of(early, "test")
    return [*(known.get(name) for name in COLUMNS), *figures, *(run.get(name) for name in MEASURED)]
