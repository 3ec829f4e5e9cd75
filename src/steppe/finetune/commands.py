"""`steppe finetune`: flags in, a table and one JSON out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from steppe._command.app import INTERRUPTED, app, hush, print_json, refusing
from steppe._command.files import DiskError
from steppe._command.flags import taking
from steppe.finetune.spec import SPELLED, Spec

HOSTS = ("transformers", "huggingface_hub", "datasets", "peft", "accelerate")


@app.command(
    short_help="Fine-tune a model with any method.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
@taking(Spec, without=("training",), spelled=SPELLED)
def finetune(
    context: typer.Context,
    flags: dict[str, Any],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Argument of the HF Trainer: learning_rate=3e-4; repeatable.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A paper's settings by name, or a TOML file; flags win; `list` names all.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Fine-tune a model with any method; with nothing given, a small example on real data, in about a minute.

    Every argument of the Hugging Face Trainer is a flag too: --max-steps 100 --learning-rate 3e-4 --bf16; and by the
    names of `steppe compare`: --epochs, --lr, --batch-size (of each process), --lr-schedule, --warmup (a share).
    """
    errors = Console(stderr=True)
    with refusing():
        asked = _training(context.args, set_ or [])
    hush_hosts()
    if recipe == "list":
        _list_recipes()
    elif not asked and recipe is None and not resume and not any(v is not None for k, v in flags.items() if k != "out"):
        with _interrupting(errors, "the same command begins anew"):
            _example(flags["out"], overwrite, errors, as_json)
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


_SWITCHES = ("set", "recipe", "resume", "overwrite", "json")


def _training(words: Sequence[str], sets: Sequence[str]) -> dict[str, Any]:
    """The Trainer's arguments: those after --set, and those that stand as flags of their own."""
    if not words and not sets:
        return {}
    from steppe.finetune import arguments

    found, more = arguments.pairs(sets), arguments.flags(words, _names())
    for key in found.keys() & more.keys():
        raise ValueError(f"{key} is given as a flag and after --set; give it once")
    return found | more


def _names() -> list[str]:
    """All flags of the command."""
    own = (SPELLED.get(name, (name,)) for name in Spec.model_fields if name != "training")
    return [part.lstrip("-") for words in own for word in words for part in word.split("/")] + list(_SWITCHES)


def _one(
    flags: dict[str, Any], asked: dict[str, Any], recipe: str | None, resume: bool, overwrite: bool,
    errors: Console, as_json: bool,
) -> None:  # fmt: skip
    errors.quiet = _rank() > 0
    with refusing():
        from steppe.finetune import spec, watch
        from steppe.finetune.run import prepare, train

        make = spec.resumed if resume else spec.resolve
        settings = make(flags, asked, recipe)
        errors.print(f"Reading {settings.data} and {settings.model}", highlight=False, markup=False, soft_wrap=True)
        ready = prepare(settings, resume=resume, overwrite=overwrite)
        for note in ready.tokens.notes:
            errors.print(note, highlight=False, markup=False, soft_wrap=True)
    with refusing(DiskError):
        result = train(ready, watch.on(errors))
    if _rank() > 0:
        return
    if as_json:
        print_json(result)
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
        print_json(record)
    else:
        from steppe.finetune.table import comparison

        console = Console()
        console.print(comparison(record, console.width))


def _list_recipes() -> None:
    from steppe.finetune.recipes import about, names
    from steppe.finetune.table import recipes

    Console().print(recipes({name: about(name) for name in names()}))


def hush_hosts() -> None:
    """Neither log nor warnings of the hosts."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or every later fork warns
    hush(*HOSTS)
    warnings.filterwarnings("ignore", module=rf"({'|'.join(HOSTS)})(\..*)?")
