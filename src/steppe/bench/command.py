"""`steppe bench`: flags in, table and one JSON out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from steppe._command.app import Number, Text, app, flag, refusing


@app.command()
def bench(
    model: Annotated[str, flag("cnn, mlp, resnet18, vit, hf:FOLDER, or your module:function.")] = "cnn",
    methods: Annotated[str, flag("Such as sam,rst,look_sam:k=5; see `steppe methods`.")] = "sam,rst,look_sam:k=5",
    batch_size: Annotated[int, flag("Examples in the batch (128).")] = 128,
    steps: Annotated[Number, flag("Steps of each contender (as many as a minute allows, 10 to 200).")] = None,
    optimizer: Annotated[str, flag("Base optimizer: sgd or adamw.")] = "sgd",
    shape: Annotated[str, flag("Channels, height and width of an image (3,32,32).")] = "3,32,32",
    classes: Annotated[int, flag("Classes of an image model (10).")] = 10,
    length: Annotated[int, flag("Tokens of a text of an hf: model (64).")] = 64,
    lora: Annotated[Number, flag("Rank of adapters of an hf: model; without it all of it is trained.")] = None,
    threads: Annotated[int, flag("Threads on the CPU (1).")] = 1,
    device: Annotated[str, flag("cpu or cuda.")] = "cpu",
    dtype: Annotated[str, flag("Of weights and inputs: float32, bfloat16, float16 or float64.")] = "float32",
    out: Annotated[Text, flag("JSON file for the figures (results/bench/<model>.json).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON on stdout.")] = False,
) -> None:  # fmt: skip
    """Measure step time and memory of methods beside the bare optimizer, on a model of yours."""
    from steppe._command.choices import parse_all
    from steppe.bench import measure
    from steppe.bench.table import table

    with refusing():
        _check(batch_size=batch_size, steps=steps, classes=classes, length=length, lora=lora, threads=threads)
        subject = _subject(model, batch_size, shape, classes, length, lora, device, dtype)
        choices = [choice.with_the_mean("the benchmark") for choice in parse_all([methods])]
        settings = measure.Settings(steps=steps, threads=threads, optimizer=_one_of("optimizer", optimizer))
        makers = measure.makers(choices, optimizer)
        for choice in choices:  # refused now, before anything is measured
            _try(choice, makers[choice.text], subject)
        target = _target(out, model)
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


def _target(out: str | None, model: str) -> Path:
    """Where the figures go; refused where there can be no such file."""
    target = Path(out or f"results/bench/{re.sub(r'[^0-9A-Za-z]+', '-', model).strip('-')}.json")
    if target.is_dir():
        raise ValueError(f"--out {target} is a folder; name a file in it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {target}: its folder cannot be made ({error.strerror}); name another file") from error
    return target


def _keep(record: dict[str, Any], target: Path) -> None:
    from steppe._command.files import write_json

    try:
        write_json(target, record)
    except OSError as error:
        raise ValueError(f"the figures above could not be written to {target} ({error.strerror})") from error


def _subject(
    model: str, batch_size: int, shape: str, classes: int, length: int, lora: int | None, device: str, dtype: str
) -> Any:
    from steppe._command.devices import usable_device
    from steppe.bench.subject import DTYPES, HF, Subject

    if lora is not None and not model.startswith(HF):
        raise ValueError(f"--lora is for hf: models, and the model is {model!r}; leave it out")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return Subject(model, batch_size, _image(shape), classes, length, lora, usable_device(device), dtype)


def _image(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise ValueError(f"shape must be whole numbers of at least 1 such as 3,32,32, got {text!r}")
    return tuple(int(piece) for piece in text.split(","))


def _one_of(name: str, value: str) -> str:
    from steppe.bench.contender import OPTIMIZERS

    if value not in OPTIMIZERS:
        raise ValueError(f"{name} must be one of {', '.join(OPTIMIZERS)}, got {value!r}")
    return value


def _check(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
