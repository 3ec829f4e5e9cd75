"""Tasks by name: the two built in, folders and files of many kinds, a Hugging Face id, or your own function."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from steppe._command.lookup import called, module_text, named_function, near, nearest
from steppe.compare.data import columns, corpora, readers, together, transformer
from steppe.compare.data.examples import Amounts, Source, Task, choose
from steppe.compare.data.files import FILES
from steppe.compare.data.linear import linear
from steppe.compare.data.options import DataOptions
from steppe.compare.data.sound import copied, noted

GENERIC: dict[str, Any] = {
    "labelled": None, "validation": None, "noise": 0.0, "model": "cnn", "epochs": 30, "batch_size": 64,
    "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "lr_schedule": "cosine",
}  # fmt: skip
"""Settings where neither the user nor the task says otherwise."""

TEXT: dict[str, Any] = GENERIC | {
    "model": "", "epochs": 3, "batch_size": 16, "optimizer": "adamw", "weight_decay": 0.01, "lr_schedule": "linear",
    "warmup": 0.06, "sharpness_examples": 128, "test_curve": 200,
}  # fmt: skip
"""The same for texts; the learning rate is `TEXT_LR`'s."""

TEXT_LR = {"lora": 1e-3, "full": 3e-5}
"""How a pretrained model is trained -> a usual learning rate of AdamW for that."""

LORA_METHODS = ("recommended", "sam", "nbar", "look_sam")
"""What is compared on adapters when nothing is named: BAR, which adds nothing to the time, is there for G-RST."""

USUAL_LR = {"sgd": 0.05, "adamw": 1e-3, "amsgrad": 1e-3}
"""Optimizer -> a usual learning rate of it, where a task's own was found for another one."""

TEXT_ONLY = (
    "text_column", "per_class", "max_length",
    "adapt", "lora_r", "lora_alpha", "lora_dropout", "lora_targets", "lora_kind",
)  # fmt: skip
"""Settings of texts and of the models that read them."""


Rows = Mapping[str, Callable[[Any], Tensor]]


@dataclass(frozen=True)
class BuiltIn:
    """A task that comes with the package: its examples, its tuned recipe, and baselines that need no training."""

    read: Callable[[], Source]
    recipe: Mapping[str, Any]
    rows: Callable[[Task], Rows] = lambda task: {}


def _signals(read: Callable[[], Source], seeds: int, **own: Any) -> BuiltIn:
    return BuiltIn(
        read,
        {"labelled": 3000, "model": "mlp", "epochs": 80, "batch_size": 100, "optimizer": "adamw",
         "lr": 0.01, "lr_grid": [0.003, 0.01, 0.03], "weight_decay": 0.01, "rho": [0.4, 0.8],
         "methods": ["sam:samples=4"], "seeds": list(range(seeds)), "tune_seeds": [0], "grow": 0, **own},
        lambda task: {"a linear model": linear(task.train, task.classes)},
    )  # fmt: skip


BUILT_IN: dict[str, BuiltIn] = {
    "mnist1d-10k": _signals(
        readers.mnist1d_10k, 5, methods=["recommended:ramp=0.1"], rho=[1.6, 3.2], tune_seeds=[0, 1]
    ),
    "mnist1d": _signals(readers.mnist1d, 12, validation=1000),
    "digits-few": BuiltIn(
        partial(readers.digits, 797),
        {"labelled": 200, "validation": 800, "epochs": 100, "batch_size": 50, "lr": 0.1,
         "weight_decay": 3e-3},
    ),
    "digits-noisy": BuiltIn(
        partial(readers.digits, 497),
        {"labelled": 1000, "validation": 300, "noise": 0.4, "epochs": 20, "batch_size": 50, "lr": 0.05,
         "weight_decay": 5e-3},
    ),
}  # fmt: skip
"""Task name -> what it is.

mnist1d-10k: the default, sized for two minutes on two cores, in which its question can be settled. It trains on
MNIST-1D's published signals (Greydanus and Kobak, ICML 2024, arXiv 2011.14439), 40 numbers in ten classes; 10,000 more
that choose and 10,000 that judge are drawn from the paper's description, so that a radius is not the luck of a thousand
signals. Its network is the paper's second: an MLP, which knows nothing of shifts. The base chooses its learning rate in
the study itself. The length comes from 10,000 further signals and the seeds 20 to 31, ramp and radii from the 10,000
that choose.

mnist1d: the published set alone, 1,000 signals to choose and 1,000 to judge.

digits-few and digits-noisy are scikit-learn's real handwritten digits, 8x8 pixels.

digits-few: 200 labelled training images, clean labels. Learning rate, weight decay, batch and epochs are those with
the best validation accuracy of the BASE (24 seeds); twice the epochs do not help it.

digits-noisy: 1,000 training images; 40 % of the labels, of training and validation examples alike, are another class
drawn uniformly. Whoever has such labels has no clean validation set either, so early stopping and the choice of rho see
noisy labels: accuracy on them is lower by a known factor but ranks models the same way. The test labels are clean: they
measure. Twenty epochs are long enough to learn part of the wrong labels by heart, as an ordinary recipe does: whether
SAM is the remedy or stopping early is, is the question of this task.
"""

KINDS = ("idx", "images", "hf", "text", *FILES)
"""Prefixes of the tasks that read a user's data: `idx:FOLDER`, `images:FOLDER`, `hf:DATASET`, `text:FILE`, files."""


def check_name(name: str) -> None:
    """Refuse a task that cannot be one, before anything is read."""
    kind, colon, rest = name.partition(":")
    if colon and rest:
        if kind not in KINDS:
            _check_function(name, near(kind, KINDS))
        elif kind == "text":
            corpora.check(rest)
        elif kind in FILES:
            columns.check(rest)
        elif kind != "hf" and not Path(rest).is_dir():
            raise ValueError(f"task {name!r}: {rest} is not a folder; give the folder that holds the data")
    elif colon and kind in KINDS:
        place = {"hf": "DATASET", "text": "FILE", **dict.fromkeys(FILES, "FILE")}.get(kind, "FOLDER")
        raise ValueError(f"task {name!r} does not say where its data is; give {kind}:{place}")
    elif Path(name).is_dir():
        raise ValueError(f"task {name!r} is a folder; say what it holds: idx:{name}, images:{name} or text:{name}")
    elif Path(name).is_file():
        kinds = ", ".join(f"{kind}:{name}" for kind in FILES)
        raise ValueError(f"task {name!r} is a file; say what it holds: {kinds} or text:{name}")
    elif name not in BUILT_IN:
        hint, files = nearest(name, BUILT_IN), "".join(f", {kind}:FILE" for kind in FILES)
        raise ValueError(
            f"unknown task {name!r}; {hint} "
            f"(or idx:FOLDER, images:FOLDER, text:FILE{files}, hf:DATASET, module:function)"
        )


def _check_function(name: str, kind: str | None) -> None:
    try:
        named_function(name, "task")
    except ValueError as error:
        if kind is None:
            raise
        raise ValueError(f"{error}; did you mean {kind}:{name.partition(':')[2]}?") from error


def check_options(name: str, given: Collection[str]) -> None:
    """Refuse data settings that task `name` would not listen to."""
    kind = name.partition(":")[0] if ":" in name and not is_function(name) else ""
    chosen = not is_function(name) and kind not in FILES
    heard = {
        "image_column": kind == "hf", "label_column": kind in ("hf", "text"), "image_size": kind in ("hf", "images"),
        "labelled": chosen, "validation": chosen, "noise": chosen, "group": kind in ("hf", "text", "images"),
    } | dict.fromkeys(TEXT_ONLY, kind == "text")  # fmt: skip
    heard |= {key: False for each in FILES.values() for key in each.hears if key not in heard}
    heard |= dict.fromkeys(FILES[kind].hears, True) if kind in FILES else {}
    for key, listens in heard.items():
        if key in given and not listens:
            raise ValueError(f"task {name!r} does not take {key!r}; leave it out")


def check_model(task: str, model: str) -> None:
    """Refuse a model that cannot read the inputs of `task`: texts need a pretrained one, the others none."""
    if task.startswith("text:") and not model:
        raise ValueError(f"task {task!r} needs a pretrained model; name one with --model hf:FOLDER or hf:ID")
    if task.startswith("text:") != model.startswith(transformer.PREFIX):
        raise ValueError(
            f"model {model!r} cannot read task {task!r}; texts (text:...) go with models hf:FOLDER or hf:ID, "
            "and the other tasks with the others"
        )


def recipe_of(name: str, adapt: str = "lora") -> dict[str, Any]:
    """The settings that task `name` proposes, complete; a pretrained model is trained by "lora" or in "full"."""
    if name.startswith("text:"):
        return TEXT | {"lr": TEXT_LR[adapt]} | ({"methods": list(LORA_METHODS)} if adapt == "lora" else {})
    if (kind := name.partition(":")[0]) in FILES:
        return GENERIC | dict(FILES[kind].recipe)
    if name in BUILT_IN:
        return GENERIC | dict(BUILT_IN[name].recipe)
    if is_function(name):
        return GENERIC | dict(call(name, 0).recipe)
    return dict(GENERIC)


def is_function(name: str) -> bool:
    """Whether `name` is a user's `module:function`."""
    return ":" in name and name.partition(":")[0] not in KINDS


def call(name: str, seed: int) -> Task:
    """The task that the user's function returns for `seed`."""
    form = "function(seed) -> steppe.compare.Task"
    task = called(named_function(name, "task"), seed, what=f"task {name!r}", form=form)
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r} returned {type(task).__name__}; expected a steppe.compare.Task")
    return task


@lru_cache(maxsize=1)
def _texts(options: DataOptions) -> Source:
    place, model = options.task.partition(":")[2], options.model.removeprefix(transformer.PREFIX)
    columns = options.text_column, options.label_column, options.group
    return noted(corpora.source(place, model, options.max_length, *columns), together.CURE)


@lru_cache(maxsize=1)
def _source(
    task: str, size: int | None, image_column: str | None, label_column: str | None, group: str | None
) -> Source:
    kind, _, rest = task.partition(":")
    if task in BUILT_IN:
        return BUILT_IN[task].read()
    if kind == "idx":
        return noted(readers.idx_folder(Path(rest)))
    if kind == "images":
        return noted(readers.image_folder(Path(rest), size, group), together.CURE_OF_IMAGES)
    return noted(readers.hugging_face(rest, image_column, label_column, size, group), together.CURE)


@lru_cache(maxsize=2)
def load(options: DataOptions, seed: int) -> Task:
    """The task of `seed`. Kept for the next run of the same process with the same seed: nobody writes to it."""
    if is_function(options.task):
        task = call(options.task, seed)
        return replace(task, notes=(*task.notes, *copied(task), *_unasked(task, options.model)))
    if (kind := options.task.partition(":")[0]) in FILES:
        return FILES[kind].task(options, seed)
    if options.task.startswith("text:"):
        source = _texts(options)
    else:
        source = _source(options.task, options.image_size, options.image_column, options.label_column, options.group)
    amounts = Amounts(options.labelled, options.validation, options.noise, options.per_class)
    task = choose(source, options.task, seed, amounts)
    return replace(task, rows=BUILT_IN[options.task].rows(task)) if options.task in BUILT_IN else task


def _unasked(task: Task, model: str) -> list[str]:
    """A sentence where a network is trained that neither the task names nor, it seems, its user."""
    if "model" in task.recipe or model != GENERIC["model"]:
        return []
    return [f"The task names no network, and {model} is trained: --model, or its recipe, names another."]


def fingerprint(name: str) -> str:
    """A short hash of the files behind a task, so that changed data does not pass for the same study.

    What is in the files of all tasks of files, whose labels may change and leave the sizes as they are, of images
    their names, sizes and ends; the module's text for a function; nothing for built-in and hub data.
    """
    kind, _, rest = name.partition(":")
    digest = hashlib.blake2b(digest_size=8)
    if is_function(name):
        digest.update(module_text(named_function(name, "task")))
    elif kind == "text":
        digest.update(corpora.fingerprint(rest))
    elif kind in FILES:
        path = Path(rest).expanduser()
        digest.update(f"{path.name}:".encode() + corpora.content(path))
    elif kind == "idx":
        _add_files(digest, Path(rest), lambda path: True)
    elif kind == "images":
        _add_images(digest, os.path.normpath(rest))
    return digest.hexdigest()


def model_fingerprint(name: str) -> str | None:
    """The same for a model: of a function its module's text, of a folder its files' names, sizes and settings."""
    kind, _, rest = name.partition(":")
    digest = hashlib.blake2b(digest_size=8)
    if is_function(name):
        digest.update(module_text(named_function(name, "model")))
    elif kind == "hf" and Path(rest).is_dir():
        _add_files(digest, Path(rest), lambda path: path.suffix == ".json")
    else:
        return None
    return digest.hexdigest()


def _add_files(digest: Any, folder: Path, read: Callable[[Path], bool]) -> None:
    """Names and sizes, and what is in those that are small or decide without changing their size."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}:{path.stat().st_size};".encode())
        digest.update(corpora.content(path) if read(path) else b"")


WHOLE, END = 2**28, 4096
"""Bytes of a folder of images up to which all are read; of each image in a larger one, its first and last so many."""


def _add_images(digest: Any, folder: str) -> None:
    """Names and sizes, and content: in strings and unbuffered, as there may be 100,000, which take seconds so."""
    walked = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    found = {path: os.path.getsize(path) for path in sorted(walked) if os.path.isfile(path)}
    end = max(found.values(), default=0) if sum(found.values()) <= WHOLE else END
    for path, size in found.items():
        digest.update(f"{path[len(folder) :]}:{size};".encode())
        with suppress(OSError), open(path, "rb", buffering=0) as file:  # the reader says what cannot be read
            digest.update(file.read(end))
            if size > end:  # a compressed image does not change in its middle alone
                file.seek(max(end, size - end))
                digest.update(file.read(end))
