"""`steppe compare`: flags in, table out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from steppe._command.app import FAILED, INTERRUPTED, BadInputError, Number, Real, Text, app, flag, refusing
from steppe._command.files import DiskError
from steppe._command.locks import TakenError


@app.command()
def compare(
    task: Annotated[
        Text, flag("digits-few, digits-noisy, idx:FOLDER, images:FOLDER, hf:ID, text:FILE, module:function.")
    ] = None,
    methods: Annotated[Text, flag("Such as sam,rst,look_sam:k=10,push=natural; see `steppe methods`.")] = None,
    seeds: Annotated[Text, flag("How many (5), or which: 0,1,2.")] = None,
    rho: Annotated[Text, flag("Radii to choose from, as for SAM: 0.05,0.1,0.2.")] = None,
    mu: Annotated[Text, flag("Values of mu to choose from, for BAR: 0.2,0.5,1.")] = None,
    lr_grid: Annotated[Text, flag("Learning rates the base chooses from; the methods train at its choice.")] = None,
    tune_lr: Annotated[Text, flag("each: every method chooses its own from lr_grid, together with rho (base).")] = None,
    tune_seeds: Annotated[Text, flag("Seeds that choose rho on the validation split: how many (2), or which.")] = None,
    labelled: Annotated[Number, flag("Labelled training examples.")] = None,
    per_class: Annotated[Number, flag("Training texts of each class, at most.")] = None,
    validation: Annotated[Number, flag("Validation examples; never from the test set.")] = None,
    noise: Annotated[Real, flag("Share of wrong labels, in training and validation alike.")] = None,
    model: Annotated[Text, flag("cnn, mlp, resnet18, vit or module:function; for texts hf:FOLDER or hf:ID.")] = None,
    adapt: Annotated[Text, flag("How a pretrained model is trained: lora (with its head) or full.")] = None,
    lora_r: Annotated[Number, flag("Rank of LoRA (8).")] = None,
    lora_alpha: Annotated[Real, flag("alpha of LoRA (16).")] = None,
    lora_dropout: Annotated[Real, flag("Dropout before LoRA's factors (0).")] = None,
    lora_targets: Annotated[Text, flag("Modules that get LoRA: query,value (PEFT's choice).")] = None,
    lora_kind: Annotated[Text, flag("lora, rslora or dora.")] = None,
    epochs: Annotated[Number, flag("Epochs of every run (the base also runs with twice as many).")] = None,
    max_steps: Annotated[Number, flag("Steps of every run, instead of epochs.")] = None,
    batch_size: Annotated[Number, flag("Examples per step.")] = None,
    optimizer: Annotated[Text, flag("Base optimizer: sgd, adamw or amsgrad (AdaSAM's).")] = None,
    lr: Annotated[Real, flag("Learning rate.")] = None,
    momentum: Annotated[Real, flag("Momentum of sgd.")] = None,
    weight_decay: Annotated[Real, flag("Weight decay.")] = None,
    lr_schedule: Annotated[Text, flag("cosine, constant or linear.")] = None,
    warmup: Annotated[Real, flag("Share of the steps over which the learning rate rises.")] = None,
    eval_every: Annotated[Number, flag("Epochs (steps, with max_steps) between looks at the validation set.")] = None,
    test_curve: Annotated[Number, flag("Test examples of the learning curve, at most (500).")] = None,
    sharpness_rho: Annotated[Real, flag("Radius at which sharpness is measured.")] = None,
    sharpness_examples: Annotated[Number, flag("Training examples it is measured on (all).")] = None,
    image_size: Annotated[Number, flag("Resize images to this many pixels a side.")] = None,
    image_column: Annotated[Text, flag("Image column of an hf: task.")] = None,
    text_column: Annotated[Text, flag("Text column of a text: task with columns; two for pairs: a,b.")] = None,
    max_length: Annotated[Number, flag("Tokens after which a text is cut.")] = None,
    metric: Annotated[Text, flag("The metric that chooses and judges (the task's first: accuracy, mse).")] = None,
    label_column: Annotated[Text, flag("Label column of an hf: or text: task.")] = None,
    device: Annotated[Text, flag("auto, cpu or cuda.")] = None,
    parallel: Annotated[Text, flag("ddp or fsdp, under torchrun: every run on all its processes.")] = None,
    jobs: Annotated[Number, flag("Runs side by side (one per core).")] = None,
    out: Annotated[Text, flag("Folder for results (results/<task>); the same command there resumes.")] = None,
    config: Annotated[Path | None, flag("TOML file with the same settings; flags win.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:  # fmt: skip
    """Train with each method and seed; say what each gains over an honest base, and what it costs."""
    flags = {key: value for key, value in locals().items() if key not in ("config", "as_json")}
    try:
        _compare({key: _numbers(key, value) for key, value in flags.items()}, config, as_json)
    except KeyboardInterrupt:
        typer.echo("steppe: interrupted; finished runs are kept and the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None


_GRIDS = ("rho", "mu", "lr_grid")


def _numbers(key: str, value: Any) -> Any:
    """Lists as they are typed on a command line: `5`, `0,1,2`, `0.1,0.2`."""
    if value is not None and key == "lora_targets":
        return value.split(",")
    if value is None or key not in ("seeds", "tune_seeds", *_GRIDS):
        return value
    read = float if key in _GRIDS else int
    try:
        numbers = [read(piece) for piece in value.split(",")]
    except ValueError:
        return value  # refused by the check of the settings, which knows what is expected
    return numbers[0] if key not in _GRIDS and "," not in value else numbers


def _compare(flags: dict[str, Any], config: Path | None, as_json: bool) -> None:
    from steppe._command import progress, ranks
    from steppe.compare.engine import parallel, study
    from steppe.compare.engine.spec import resolve
    from steppe.compare.report.table import table

    errors = Console(stderr=True)
    with refusing():
        plan = study.check(parallel.begin(resolve(flags, config)))
    errors.quiet = not ranks.first()
    try:
        with progress.on(errors) as shown:
            outcome = study.compare(plan, shown)
    except (DiskError, TakenError) as error:
        raise BadInputError(str(error)) from error
    ranks.agree(None)  # nobody leaves while another still needs it
    if not ranks.first():
        return
    if as_json:
        typer.echo(json.dumps(outcome.summary, indent=1))
    else:
        console = Console()
        console.print(table(outcome.summary, console.width))
        console.print(outcome.summary["verdict"], highlight=False, markup=False)
        console.print(f"Report: {outcome.report}", highlight=False, markup=False, soft_wrap=True)
    if outcome.failed:
        first = next(iter(outcome.failed.values()))
        errors.print(f"{len(outcome.failed)} failed, the first: {first}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(FAILED)
