"""`steppe bench`: flags in, table and one JSON out."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from steppe._command import files
from steppe._command.app import app, refusing
from steppe._command.choices import parse_all
from steppe._command.flags import given, taking
from steppe.bench import measure
from steppe.bench.subject import Subject
from steppe.bench.table import table
from steppe.bench.tasked import DATA, chosen
from steppe.compare.engine.spec import SPELLED, Spec

_OWN = {each.name for kind in (Subject, measure.Settings) for each in fields(kind)}
_NOT_HERE = Spec.model_fields.keys() - _OWN - set(DATA)
"""Settings of a comparison that do not say what a step is."""

_SHOWN = {"task": "none: made-up inputs", "model": "the task's, or cnn", "batch_size": "the task's, or 128"}


@app.command()
@taking(Spec, Subject, measure.Settings, without=_NOT_HERE, spelled=SPELLED, shown=_SHOWN)
def bench(
    flags: dict[str, Any],
    methods: Annotated[str, typer.Option(help="Such as sam,rst,my.py:MySAM.")] = "sam,rst,look_sam:k=5",
    out: Annotated[str | None, typer.Option(help="JSON file for the figures (results/bench/<model>.json).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON on stdout.")] = False,
) -> None:
    """Measure step time and memory of methods beside the bare optimizer, on a model or a task of yours."""
    with refusing():
        subject = chosen(flags)
        choices = [choice.with_the_mean("the benchmark") for choice in parse_all([methods])]
        settings = measure.Settings(**given(flags, measure.Settings))
        makers = measure.makers(choices, settings.optimizer)
        for choice in choices:  # refused now, before anything is measured
            _try(choice, makers[choice.text], subject)
        target = _target(out, subject.name)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("turns", total=1.0)
        record = measure.measure(subject, makers, settings, lambda share: bar.update(task, completed=share))
    if as_json:
        typer.echo(json.dumps(record, indent=1))
    else:
        Console().print(table(record))
    with refusing():
        _keep(record, target)
    if not as_json:
        typer.echo(f"Figures: {target}")


def _try(choice: Any, maker: Any, subject: Any) -> None:
    """Refuse a method that cannot be built on the subject."""
    job = subject.make()
    try:
        maker(job)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method {choice.text!r}: {error}") from error


def _target(out: str | None, name: str) -> Path:
    """Where the figures go; refused where there can be no such file."""
    target = Path(out or f"results/bench/{re.sub(r'[^0-9A-Za-z]+', '-', name).strip('-')}.json")
    if target.is_dir():
        raise ValueError(f"--out {target} is a folder; name a file in it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {target}: its folder cannot be made ({error.strerror}); name another file") from error
    return target


def _keep(record: dict[str, Any], target: Path) -> None:
    try:
        files.write_json(target, record)
    except OSError as error:
        raise ValueError(f"the figures above could not be written to {target} ({error.strerror})") from error
