"""`steppe compare`: flags in, table out."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from steppe._command.app import FAILED, INTERRUPTED, app, print_json, refusing
from steppe._command.files import DiskError
from steppe._command.flags import taking
from steppe._command.locks import TakenError
from steppe.compare.engine.shown import SHOWN
from steppe.compare.engine.spec import SPELLED, Spec, resolve


@app.command(short_help="Say what each method gains on your data, and what it costs.")
@taking(Spec, spelled=SPELLED, shown=SHOWN)
def compare(
    flags: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help="TOML file with the same settings; flags win.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write table and report of the comparison in this folder anew; run nothing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Train with each method and seed; say what each gains over an honest base, and what it costs."""
    try:
        with refusing(DiskError, TakenError):
            if report is not None:
                _rewrite(report, {**flags, "config": config}, as_json)
            else:
                _compare(flags, config, as_json)
    except KeyboardInterrupt:
        typer.echo("steppe: interrupted; finished runs are kept and the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _rewrite(folder: Path, others: dict[str, Any], as_json: bool) -> None:
    from steppe.compare.engine import study

    with refusing():
        given = next((name for name, value in others.items() if value is not None), None)
        if given is not None:
            word = given.replace("_", "-")
            raise ValueError(f"--report runs nothing, so --{word} says nothing there; leave it out")
        outcome = study.rewrite(folder)
    _say(outcome.summary, outcome.report, as_json)


def _compare(flags: dict[str, Any], config: Path | None, as_json: bool) -> None:
    from steppe._command import ranks
    from steppe._command.pool import warm_up
    from steppe.compare import screen
    from steppe.compare.engine import executors, foretold, parallel, study
    from steppe.compare.engine.script import FirstFailedError

    errors = Console(stderr=True)
    with ExitStack() as closing:
        with refusing():
            spec, engine = closing.enter_context(executors.opened(parallel.begin(resolve(flags, config))))
            if engine is None and spec.parallel is None:
                warm_up()
            plan = study.check(spec)
        errors.quiet = not ranks.first()
        with refusing(FirstFailedError, executors.ExecutorError), screen.on(errors, plan) as shown:
            for note in study.notes_of_data(plan):
                shown.say(f"· {note}")
            shown.foretell(foretold.seconds(plan) if engine is None else 0.0)
            outcome = study.compare(plan, shown, engine)
    ranks.agree(None)  # nobody leaves while another still needs it
    if not ranks.first():
        return
    _say(outcome.summary, outcome.report, as_json)
    if outcome.failed:
        first = next(iter(outcome.failed.values()))
        errors.print(f"{len(outcome.failed)} failed, the first: {first}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(FAILED)


def _say(summary: dict[str, Any], report: Path, as_json: bool) -> None:
    from steppe.compare.report import also
    from steppe.compare.report.table import legend, table

    if as_json:
        print_json(summary)
        return
    console = Console()
    console.print(table(summary, console.width))
    console.print(legend(summary, console.width), style="dim", highlight=False, markup=False)
    if summary.get("also"):
        console.print(also.table(summary))
    console.print(summary["verdict"], style="bold", highlight=False, markup=False)
    for hint in summary.get("hints", ()):
        console.print(f"· {hint}", highlight=False, markup=False)
    console.print(f"Report: {report}", highlight=False, markup=False, soft_wrap=True)
