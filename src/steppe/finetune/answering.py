"""`steppe predict`: the answers of a fine-tuned classifier, one JSON a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from steppe._command.app import app, print_json, refusing
from steppe._command.files import DiskError, write_text, writing
from steppe._command.tables import table


@app.command(short_help="Let a fine-tuned classifier answer further texts.")
def predict(
    run: Annotated[str, typer.Argument(help="The --out of a finished steppe finetune that classifies.")],
    data: Annotated[
        str | None, typer.Option(help="Examples in the form of its training data; labels need not be there.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", "--text-column", help="Column of the text, or two for pairs (as in the fine-tuning)."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", "--label-column", help="Column of the label (as in the fine-tuning, if it is there)."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of an hf: data set (train).")] = None,
    out: Annotated[
        str | None, typer.Option(help="File of the answers, one JSON a line (predictions.jsonl in RUN).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")] = False,
) -> None:
    """Let a fine-tuned classifier answer further texts; each class by itself where their labels are known."""
    with refusing():
        if data is None:
            raise ValueError("--data is missing: give a file or hf:DATASET of texts")
        from steppe.finetune import watch
        from steppe.finetune.commands import hush_hosts
        from steppe.finetune.predict import predict as answer

        hush_hosts()
        with watch.on(Console(stderr=True)) as shown:
            record = answer(run, data, text=text, label=label, split=split, tell=shown.measured)
    target = Path(out or f"{run}/predictions.jsonl")
    with refusing(DiskError), writing(target.parent, "make room or name another file with --out"):
        write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in record["rows"]))
    if as_json:
        print_json(record)
        return
    if record["per_class"]:
        Console().print(_table(record))
    typer.echo(f"{len(record['rows'])} answers: {target}")


def _table(record: dict[str, Any]) -> Table:
    guess = record["majority"]
    caption = (
        f"accuracy {100 * record['accuracy']:.2f} % on {len(record['rows']):,} examples; always answering "
        f"{guess['class']!r}, the commonest of the training, has {100 * guess['accuracy']:.2f} %"
    )
    made = table(("class", "examples", "precision %", "recall %", "F1 %"), ruled=True)
    made.caption, made.caption_justify = caption, "left"
    for row in record["per_class"]:
        shares = (f"{100 * row[name]:.1f}" for name in ("precision", "recall", "f1"))
        made.add_row(row["class"], f"{row['examples']:,}", *shares)
    return made
