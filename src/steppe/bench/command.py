"""`steppe bench`: flags in, table and one JSON out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from steppe._command.app import app, print_json, refusing
from steppe._command.choices import parse_all
from steppe._command.files import free_target, keep_figures, named_after
from steppe._command.flags import given, taking
from steppe.bench import measure
from steppe.bench.subject import Subject, check_loss
from steppe.bench.table import table
from steppe.bench.tasked import DATA, chosen
from steppe.compare.engine.spec import SPELLED, Spec

_OWN = {each.name for kind in (Subject, measure.Request) for each in fields(kind)}
_NOT_HERE = Spec.model_fields.keys() - _OWN - set(DATA)
"""Settings of a comparison that do not say what a step is."""

_SHOWN = {"task": "none: made-up inputs", "model": "the task's, or cnn", "batch_size": "the task's, or 128"}


_OUT = "JSON file for the figures (results/bench/<model or task>-<methods>-<settings given>.json)."


@app.command(short_help="Measure time and memory of a step with each method.")
@taking(Spec, Subject, measure.Request, without=_NOT_HERE, spelled=SPELLED, shown=_SHOWN)
def bench(
    flags: dict[str, Any],
    methods: Annotated[str, typer.Option(help="Such as sam,rst,my.py:MySAM.")] = "sam,rst,look_sam:k=5",
    out: Annotated[str | None, typer.Option(help=_OUT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON on stdout.")] = False,
) -> None:
    """Measure step time and memory of methods beside the bare optimizer, on a model or a task of yours."""
    with refusing():
        subject = chosen(flags)
        choices = [choice.with_the_mean("the benchmark") for choice in parse_all([methods])]
        settings = measure.Request(**given(flags, measure.Request))
        makers = measure.makers(choices, settings.optimizer)
        check_loss(subject.make(), subject.name)
        for choice in choices:  # refused now, before anything is measured
            _try(choice, makers[choice.text], subject)
        beside = {key: each for key, each in flags.items() if each not in (None, subject.name)}
        name = named_after([subject.name, *(each.text for each in choices)], beside)
        target = free_target(Path(out or f"results/bench/{name}.json"))
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("turns", total=1.0)
        record = measure.measure(subject, makers, settings, lambda share: bar.update(task, completed=share))
    if as_json:
        print_json(record)
    else:
        console = Console()
        console.print(table(record, console.width))
    with refusing():
        keep_figures(target, record)
    if not as_json:
        typer.echo(f"Figures: {target}")


def _try(choice: Any, maker: Any, subject: Any) -> None:
    """Refuse a method that cannot be built on the subject, or take a step on it."""
    problem = subject.make()
    try:
        made = maker(problem)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method {choice.text!r}: {error}") from error
    made.place(True)
    try:
        made.step(problem.batch)
    except ValueError as error:
        raise ValueError(f"method {choice.text!r}: {error}") from error
