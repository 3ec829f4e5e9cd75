"""`steppe finetune`: flags in, a table and one JSON out."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from steppe._command.app import INTERRUPTED, BadInputError, Number, Real, Text, app, flag, refusing
from steppe._command.files import finite


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def finetune(
    context: typer.Context,
    model: Annotated[Text, flag("Folder of a saved model, or an id of the Hugging Face hub.")] = None,
    data: Annotated[Text, flag("FILE.jsonl, FILE.csv, a file of lines `LABEL text`, or hf:DATASET.")] = None,
    split: Annotated[Text, flag("Split of an hf: data set (train).")] = None,
    test: Annotated[Text, flag("Test data in the same form; without it a share of the data is held out.")] = None,
    test_split: Annotated[Text, flag("Split of an hf: test, needed there.")] = None,
    task: Annotated[Text, flag("classify (the default) or causal-lm.")] = None,
    text: Annotated[Text, flag("Column of the text (text), or two for pairs: premise,hypothesis.")] = None,
    label: Annotated[Text, flag("Column of the label (label).")] = None,
    prompt: Annotated[Text, flag("Column of the prompt (prompt).")] = None,
    response: Annotated[Text, flag("Column of the response (response); the loss is on it alone.")] = None,
    examples: Annotated[Number, flag("At most so many training examples.")] = None,
    per_class: Annotated[Number, flag("At most so many training examples of each class.")] = None,
    held_out: Annotated[Real, flag("Share held out where there is no test data (0.1).")] = None,
    validation: Annotated[
        Text, flag("Share of the training examples (0.1), or data, that choose: best checkpoint, early stopping.")
    ] = None,
    validation_split: Annotated[Text, flag("Split of an hf: validation, needed there.")] = None,
    patience: Annotated[Number, flag("Stop after so many looks at the validation without a better one.")] = None,
    method: Annotated[Text, flag("base, nbar, sam, look_sam:k=5,push=natural, ...; see `steppe methods`.")] = None,
    full: Annotated[
        bool | None, typer.Option("--full/--lora", help="Train everything, or LoRA (the default).", show_default=False)
    ] = None,
    adapter: Annotated[Text, flag("Folder of a PEFT adapter to train further.")] = None,
    r: Annotated[
        Number, typer.Option("--r", "--lora-r", help="LoRA's rank (8); for torchrun --lora-r.", show_default=False)
    ] = None,
    alpha: Annotated[Real, flag("LoRA's alpha (16).")] = None,
    dropout: Annotated[Real, flag("LoRA's dropout (0).")] = None,
    targets: Annotated[Text, flag("Modules that get adapters: query,value or all-linear.")] = None,
    kind: Annotated[Text, flag("lora, rslora or dora.")] = None,
    max_length: Annotated[Number, flag("Tokens of an example (128; causal-lm 512); what is longer is cut.")] = None,
    packing: Annotated[
        bool | None, typer.Option("--packing", help="Several dialogues in a block of --max-length.", show_default=False)
    ] = None,
    seed: Annotated[Number, flag("Draws everything that is random (0).")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Argument of the HF Trainer: learning_rate=3e-4; repeatable.")
    ] = None,
    recipe: Annotated[Text, flag("A paper's settings by name, or a TOML file; flags win; `list` names all.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    out: Annotated[Text, flag("Folder of the result (results/finetune/<model>-<data>-<method>).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:  # fmt: skip
    """Fine-tune a model with any method; with nothing given, a small example on real data, in about a minute.

    Every argument of the Hugging Face Trainer is a flag too: --max-steps 100 --learning-rate 3e-4 --bf16.
    """
    taken = dict(locals())
    flags = {key: taken[key] for key in _FIELDS}
    errors = Console(stderr=True)
    with refusing():
        asked = _training(context.args, set_ or [])
    _hush()
    if recipe == "list":
        _list_recipes()
    elif not asked and recipe is None and not resume and all(flags[key] is None for key in _FIELDS if key != "out"):
        with _interrupting(errors, "the same command begins anew"):
            _example(out, overwrite, errors, as_json)
    else:
        with _interrupting(errors, "the same command with --resume goes on from the last checkpoint"):
            _one(flags, asked, recipe, resume, overwrite, errors, as_json)


@contextmanager
def _interrupting(errors: Console, what_next: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        errors.print(f"steppe: interrupted; {what_next}", highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


_FIELDS = (
    "model", "data", "split", "test", "test_split", "task", "text", "label", "prompt", "response", "examples",
    "per_class", "held_out", "validation", "validation_split", "patience", "method", "full", "adapter", "r", "alpha",
    "dropout", "targets", "kind", "max_length", "packing", "seed", "out",
)  # fmt: skip
_SWITCHES = ("lora", "lora_r", "set", "recipe", "resume", "overwrite", "json")


def _training(words: Sequence[str], sets: Sequence[str]) -> dict[str, Any]:
    """The Trainer's arguments: those after --set, and those that stand as flags of their own."""
    if not words and not sets:
        return {}
    from steppe.finetune import arguments

    found, more = arguments.pairs(sets), arguments.flags(words, (*_FIELDS, *_SWITCHES))
    for key in found.keys() & more.keys():
        raise ValueError(f"{key} is given as a flag and after --set; give it once")
    return found | more


def _one(
    flags: dict[str, Any], asked: dict[str, Any], recipe: str | None, resume: bool, overwrite: bool,
    errors: Console, as_json: bool,
) -> None:  # fmt: skip
    errors.quiet = _rank() > 0
    with refusing():
        from steppe.finetune import spec, watch
        from steppe.finetune.folder import DiskError
        from steppe.finetune.run import prepare, train

        make = spec.resumed if resume else spec.resolve
        settings = make(flags, asked, recipe)
        errors.print(f"Reading {settings.data} and {settings.model}", highlight=False, markup=False, soft_wrap=True)
        plan = prepare(settings, resume=resume, overwrite=overwrite)
    try:
        result = train(plan, watch.on(errors))
    except DiskError as error:
        raise BadInputError(str(error)) from error
    if _rank() > 0:
        return
    if as_json:
        typer.echo(json.dumps(finite(result), indent=1))
    else:
        from steppe.finetune.table import summary

        Console().print(summary(result))


def _rank() -> int:
    """Which of torchrun's processes this is; the first one speaks."""
    return int(os.environ.get("RANK", 0))


def _example(out: str | None, overwrite: bool, errors: Console, as_json: bool) -> None:
    with refusing():
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("the example runs in one process; start it without torchrun, or give --model and --data")
        from steppe.finetune import example, watch

        record = example.run(out or "results/finetune/digits", overwrite=overwrite, shown=watch.on(errors))
    if as_json:
        typer.echo(json.dumps(finite(record), indent=1))
    else:
        from steppe.finetune.table import comparison

        Console().print(comparison(record))


def _list_recipes() -> None:
    from steppe.finetune.recipes import about, names
    from steppe.finetune.table import recipes

    Console().print(recipes({name: about(name) for name in names()}))


def _hush() -> None:
    """The hosts log much; what matters comes back as one sentence."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or every later fork warns
    for name in ("transformers", "huggingface_hub", "datasets", "peft", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}(\..*)?")
