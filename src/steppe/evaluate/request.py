"""What is to be evaluated, checked before anything is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from steppe._command.devices import usable_device
from steppe._command.files import read_json
from steppe._command.lookup import first_line
from steppe._command.saved import trained_in
from steppe._parts import check_choice, check_count

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Request:
    """A model, the tasks it is tried on, and how.

    What each field is stands at the field; it is the help of the flag of that name.

    Raises:
        ValueError: a setting cannot be used; the sentence says what is expected.
    """

    model: Annotated[
        str, Field(description="Causal language model, PEFT adapter or fine-tuning (its --out): folder or hub id.")
    ]
    tasks: Annotated[
        tuple[str, ...],
        Field(description="Tasks, groups and tags that lm-eval knows, and FILE.jsonl of query, choices, gold."),
    ] = ()
    adapter: Annotated[str | None, Field(description="Folder or hub id of a PEFT adapter of the model.")] = None
    same_base: Annotated[
        bool, Field(description="Take an adapter that names another base: the model is that base, renamed.")
    ] = False
    limit: Annotated[int | None, Field(description="Only the first so many examples of each task (all).")] = None
    num_fewshot: Annotated[
        int | None, Field(description="Solved examples before each question (the task's own number; 0 for files).")
    ] = None
    batch_size: Annotated[int | str, Field(description="Sequences per pass, or auto for the most that fit.")] = 8
    dtype: Annotated[str, Field(description="Of the weights: auto (as saved), float32, bfloat16 or float16.")] = "auto"
    device: Annotated[str, Field(description="auto, cpu, cuda or cuda:0.")] = "auto"
    delimiter: Annotated[
        str, Field(description="Between query and choice in files; \\n is a new line. Named tasks bring their own.")
    ] = " "
    seed: Annotated[int, Field(description="Draws the solved examples.")] = 1234

    def __post_init__(self) -> None:
        _check_language(self.model)
        _check_tasks(self.tasks)
        if self.limit is not None:
            check_count("limit", self.limit)
        if self.num_fewshot is not None:
            check_count("num_fewshot", self.num_fewshot, least=0)
        if self.batch_size != "auto":
            check_count("batch_size", self.batch_size)
        check_choice("dtype", self.dtype, DTYPES)
        object.__setattr__(self, "device", usable_device(self.device))
        object.__setattr__(self, "model", trained_in(self.model))
        object.__setattr__(self, "adapter", self.adapter and trained_in(self.adapter))
        for what, given in (("model", self.model), ("adapter", self.adapter)):
            if given is not None:
                _check_source(what, given)

    def settings(self) -> dict[str, Any]:
        """What decides the figures beside model and tasks."""
        left_out = ("model", "adapter", "tasks")
        return {key: value for key, value in asdict(self).items() if key not in left_out}


def _check_language(model: str) -> None:
    """Refuse a fine-tuned classifier by what it is good for."""
    begun = read_json(Path(model) / "settings.json")
    if isinstance(begun, dict) and (begun.get("settings") or {}).get("task") == "classify":
        raise ValueError(
            f"{model} holds a classifier, and expected is a causal language model; measure it with "
            f"steppe predict {model} --data FILE"
        )


def _check_tasks(tasks: tuple[str, ...]) -> None:
    if not tasks or not all(tasks):
        raise ValueError("no task was given; name some, such as --tasks hellaswag,arc_easy or --tasks my_file.jsonl")
    for name in tasks:
        if tasks.count(name) > 1:
            raise ValueError(f"task {name!r} is named twice; name each task once")


def _check_source(what: str, given: str) -> None:
    """A folder that is there, or something that may be a hub id."""
    if os.path.isdir(given):
        return
    if os.path.exists(given):
        raise ValueError(f"{what} {given!r} is a file; expected a folder with config files and weights, or a hub id")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", given):
        raise ValueError(f"{what} {given!r} is not a folder here, and not a hub id such as 'gpt2' or 'owner/name'")


def adapter_config(folder: str) -> Path:
    """The file that makes a folder that of a PEFT adapter."""
    return Path(folder) / "adapter_config.json"


def translated(load: Callable[[], Any], sentence: str) -> Any:
    """What `load` gives; whatever it raises becomes ``sentence`` with the first line of the cause."""
    try:
        return load()
    except Exception as error:
        raise ValueError(f"{sentence} ({first_line(error)})") from error
