"""`steppe compare`: flags in, table out."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from steppe._command.app import FAILED, INTERRUPTED, BadInputError, app, refusing
from steppe._command.files import DiskError
from steppe._command.flags import taking
from steppe._command.locks import TakenError
from steppe.compare.engine.spec import SHOWN, SPELLED, Spec, resolve


@app.command()
@taking(Spec, spelled=SPELLED, shown=SHOWN)
def compare(
    flags: dict[str, Any],
    config: Annotated[Path | None, typer.Option(help="TOML file with the same settings; flags win.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Train with each method and seed; say what each gains over an honest base, and what it costs."""
    try:
        _compare(flags, config, as_json)
    except KeyboardInterrupt:
        typer.echo("steppe: interrupted; finished runs are kept and the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _compare(flags: dict[str, Any], config: Path | None, as_json: bool) -> None:
    from steppe._command import progress, ranks
    from steppe.compare.engine import executors, parallel, study
    from steppe.compare.engine.script import FirstFailedError
    from steppe.compare.report import also
    from steppe.compare.report.table import legend, table

    errors = Console(stderr=True)
    with ExitStack() as closing:
        with refusing():
            spec, engine = closing.enter_context(executors.opened(parallel.begin(resolve(flags, config))))
            plan = study.check(spec)
        errors.quiet = not ranks.first()
        try:
            with progress.on(errors) as shown:
                outcome = study.compare(plan, shown, engine)
        except (DiskError, TakenError, FirstFailedError, executors.ExecutorError) as error:
            raise BadInputError(str(error)) from error
    ranks.agree(None)  # nobody leaves while another still needs it
    if not ranks.first():
        return
    if as_json:
        typer.echo(json.dumps(outcome.summary, indent=1))
    else:
        console = Console()
        console.print(table(outcome.summary, console.width))
        console.print(legend(outcome.summary), style="dim", highlight=False, markup=False)
        if outcome.summary.get("also"):
            console.print(also.table(outcome.summary))
        console.print(outcome.summary["verdict"], style="bold", highlight=False, markup=False)
        for hint in outcome.summary.get("hints", ()):
            console.print(f"· {hint}", highlight=False, markup=False)
        console.print(f"Report: {outcome.report}", highlight=False, markup=False, soft_wrap=True)
    if outcome.failed:
        first = next(iter(outcome.failed.values()))
        errors.print(f"{len(outcome.failed)} failed, the first: {first}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(FAILED)
