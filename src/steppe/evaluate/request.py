"""What is to be evaluated, checked before anything is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steppe._command.devices import usable_device
from steppe._command.saved import trained_in
from steppe._parts import check_choice, check_count

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Request:
    """A model, the tasks it is tried on, and how.

    Args:
        model: folder of a causal language model, of a PEFT adapter or of a fine-tuning (its ``--out``), or the hub id
            of a model or adapter.
        tasks: names that lm-eval knows (its groups and tags too), and files of JSON lines ``query, choices, gold``.
        adapter: folder or hub id of a PEFT adapter of ``model``.
        same_base: take the adapter although it names another base model: ``model`` is that base under a new name.
        limit: the first so many examples of each task; None for all.
        num_fewshot: solved examples before each question; None for the task's own number (0 for files).
        batch_size: sequences per forward pass, or "auto" for the largest that fits.
        dtype: of the weights; "auto" is that of the checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:0".
        delimiter: what stands between query and choice in files. Named tasks bring their own.
        seed: draws the solved examples.

    Raises:
        ValueError: a setting cannot be used; the sentence says what is expected.
    """

    model: str
    tasks: tuple[str, ...]
    adapter: str | None = None
    same_base: bool = False
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | str = 8
    dtype: str = "auto"
    device: str = "auto"
    delimiter: str = " "
    seed: int = 1234

    def __post_init__(self) -> None:
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
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{sentence} ({why.rstrip('.')})") from error
