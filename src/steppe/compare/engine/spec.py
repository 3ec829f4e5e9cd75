"""The settings of a study: defaults, then the task's recipe, then a TOML file, then the command line; all checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

import steppe
from steppe._command.devices import usable_cores, usable_device
from steppe._command.lookup import nearest
from steppe._command.settings import Grid, Positive, Seeds, Share, Whole, read_toml, words
from steppe.compare.data import tasks, transformer
from steppe.text.models import Lora

SCHEMA = 1
"""Version of the run records: a record of another version is another study's."""

DEFAULT_METHODS = ("sam", "asam", "layer_sam", "rst", "grst", "look_sam", "gsam", "fsam")
"""What is compared when nothing is named."""

_NOT_IN_RESULT = {"methods", "seeds", "tune_seeds", "rho", "mu", "lr_grid", "tune_lr", "jobs", "out", "parallel"}

_LATER = {
    "text_column", "per_class", "max_length", "adapt", "lora_r", "lora_alpha", "lora_dropout", "lora_targets",
    "lora_kind", "max_steps", "metric", "warmup", "sharpness_examples", "test_curve",
}  # fmt: skip
"""Settings that came when there were records already: they count in the hash where they differ from their default."""

_MU = (0.5, 1.0, 0.2, 2.0, 0.1, 5.0)
"""The most usual mu first: a grid of n takes n of them, so that every method has as many tuning runs."""


class Spec(BaseModel):
    """Everything a study needs to know, complete. Each field is a key of the TOML file and a flag (`_` becomes `-`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    task: Annotated[str, Field(description="the name of a task")] = "digits-few"
    labelled: Annotated[int | None, Field(ge=2, description="a whole number of at least 2")] = None
    validation: Annotated[int | None, Field(ge=2, description="a whole number of at least 2")] = None
    noise: Share = 0.0
    image_size: Annotated[int | None, Field(ge=8, description="a whole number of at least 8 (pixels)")] = None
    image_column: Annotated[str | None, Field(description="the name of a column")] = None
    label_column: Annotated[str | None, Field(description="the name of a column")] = None
    text_column: Annotated[str | None, Field(description="the name of a column, or of two: premise,hypothesis")] = None
    per_class: Annotated[int | None, Field(ge=1, description="a whole number of at least 1")] = None
    max_length: Annotated[int | None, Field(ge=2, description="a whole number of tokens of at least 2")] = None
    metric: Annotated[str | None, Field(description="the name of a metric")] = None
    model: Annotated[str, Field(description="the name of a model")] = "cnn"
    adapt: Annotated[Literal["lora", "full"], Field(description="'lora' or 'full'")] = "lora"
    lora_r: Whole = 8
    lora_alpha: Positive = 16.0
    lora_dropout: Share = 0.0
    lora_targets: Annotated[
        Annotated[list[str], Field(min_length=1)] | None,
        BeforeValidator(words),
        Field(description="a list of module names"),
    ] = None
    lora_kind: Annotated[Literal["lora", "rslora", "dora"], Field(description="'lora', 'rslora' or 'dora'")] = "lora"
    methods: Annotated[list[str], BeforeValidator(words), Field(min_length=1, description="a list of method names")] = (
        list(DEFAULT_METHODS)
    )
    seeds: Seeds = list(range(5))
    rho: Annotated[Grid, Field(description="a list of radii above 0")] = [0.05, 0.1, 0.2]
    mu: Annotated[Grid | None, Field(description="a list of numbers above 0")] = None
    lr_grid: Annotated[Grid | None, Field(description="a list of learning rates above 0")] = None
    tune_lr: Annotated[Literal["base", "each"], Field(description="'base' or 'each'")] = "base"
    tune_seeds: Seeds = [0, 1]
    epochs: Whole = 30
    max_steps: Annotated[int | None, Field(ge=1, description="a whole number of at least 1")] = None
    batch_size: Whole = 64
    optimizer: Annotated[Literal["sgd", "adamw", "amsgrad"], Field(description="'sgd', 'adamw' or 'amsgrad'")] = "sgd"
    lr: Positive = 0.05
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number of at least 0")] = 5e-4
    lr_schedule: Annotated[
        Literal["cosine", "constant", "linear"], Field(description="'cosine', 'constant' or 'linear'")
    ] = "cosine"
    warmup: Share = 0.0
    eval_every: Annotated[
        int | None, Field(ge=1, description="a whole number of epochs (of steps, with max_steps) of at least 1")
    ] = None
    test_curve: Whole = 500
    sharpness_rho: Positive = 0.05
    sharpness_examples: Annotated[int | None, Field(ge=1, description="a whole number of at least 1")] = None
    device: Annotated[str, Field(description="'auto', 'cpu', 'cuda' or 'cuda:0'")] = "auto"
    jobs: Annotated[int | None, Field(ge=1, le=256, description="a whole number from 1 to 256")] = None
    parallel: Annotated[Literal["ddp", "fsdp"] | None, Field(description="'ddp' or 'fsdp'")] = None
    out: Annotated[str, Field(min_length=1, description="a folder")] = ""

    def data_options(self) -> tasks.DataOptions:
        """What decides the examples."""
        names = tasks.DataOptions.__dataclass_fields__
        return tasks.DataOptions(**{name: getattr(self, name) for name in names})

    def hash(self) -> str:
        """A hash of all that decides what a run of given method, rho and seed results in."""
        plain = {name for name in _LATER if getattr(self, name) == type(self).model_fields[name].default}
        decisive = self.model_dump(exclude=_NOT_IN_RESULT | plain)
        decisive |= {"parallel": self.parallel} if self.parallel else {}
        model = tasks.model_fingerprint(self.model)
        decisive |= {"model_files": model} if model else {}
        decisive |= {"schema": SCHEMA, "steppe": steppe.__version__, "data": tasks.fingerprint(self.task)}
        return short_hash(decisive)

    def lora(self) -> Lora | None:
        """The adapters of a pretrained model, None where all of it is trained."""
        if self.adapt == "full" or not self.model.startswith(transformer.PREFIX):
            return None
        targets = tuple(self.lora_targets) if self.lora_targets else None
        return Lora(self.lora_r, self.lora_alpha, self.lora_dropout, targets, self.lora_kind)

    @property
    def grids(self) -> dict[str, list[float]]:
        """The values to choose from by the name of the setting: rho, and mu for the methods that have no radius."""
        return {"rho": self.rho, "mu": self.mu or _usual_mu(len(self.rho))}

    def steps(self, per_epoch: int) -> int:
        """Optimizer steps of a run of the base, where `per_epoch` make an epoch."""
        return self.max_steps or self.epochs * per_epoch

    def every(self, per_epoch: int) -> int:
        """Steps between two looks at the validation part: about ten looks in a run of the base."""
        if self.max_steps:
            return self.eval_every or max(1, self.max_steps // 10)
        return (self.eval_every or max(1, self.epochs // 10)) * per_epoch

    @property
    def workers(self) -> int:
        """How many runs go side by side: one per core, at most four on one GPU."""
        cores = usable_cores()
        return self.jobs or (cores if self.device == "cpu" else min(4, cores))


def _usual_mu(count: int) -> list[float]:
    if count <= len(_MU):
        return sorted(_MU[:count])
    low, high = min(_MU), max(_MU)
    return [round(low * (high / low) ** (i / (count - 1)), 4) for i in range(count)]


def short_hash(value: Any) -> str:
    """Twelve hex digits that stand for a JSON-like value."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()


def resolve(flags: Mapping[str, Any], config: Path | None = None) -> Spec:
    """The complete, checked settings.

    Args:
        flags: what was given on the command line (None: not given); wins over everything.
        config: a TOML file with the same keys.

    Raises:
        ValueError: one sentence about the first thing that is wrong.
    """
    given = read_toml(config) if config else {}
    _check_keys(given, f"{config}: ")
    given |= {key: value for key, value in flags.items() if value is not None}
    first = _validated(given)
    tasks.check_name(first.task)
    tasks.check_options(first.task, given)
    tasks.check_model(first.task, str(given.get("model", "")))
    spec = _validated(tasks.recipe_of(first.task, first.adapt) | given)
    _check_together(spec, given)
    device = usable_device(spec.device)
    out = spec.out or f"results/{_slug(spec.task)}"
    return spec.model_copy(update={"device": device, "out": out})


def _check_together(spec: Spec, given: Mapping[str, Any]) -> None:
    """Refuse what would not be listened to because of another setting."""
    if spec.optimizer != "sgd" and "momentum" in given:
        raise ValueError(f"momentum belongs to the optimizer 'sgd'; leave it out with {spec.optimizer!r}")
    lora = next((name for name in given if name.startswith("lora_")), None)
    if spec.adapt == "full" and lora:
        raise ValueError(f"{lora} belongs to adapt = 'lora'; leave it out with 'full', which trains every weight")
    if spec.tune_lr == "each" and not spec.lr_grid:
        raise ValueError("tune_lr = 'each' has nothing to choose from; give learning rates too, as lr_grid")
    for one, other in (("epochs", "max_steps"), ("labelled", "per_class"), ("lr", "lr_grid")):
        if one in given and other in given:
            raise ValueError(f"{one} and {other} are both given; give one of them")


def _check_keys(given: Mapping[str, Any], where: str) -> None:
    for key in given:
        if key not in Spec.model_fields:
            raise ValueError(f"{where}unknown setting {key!r}; {nearest(key, Spec.model_fields)}")


def _validated(values: Mapping[str, Any]) -> Spec:
    _check_keys(values, "the task's recipe: ")
    try:
        return Spec.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(_sentence(error, values)) from None


def _sentence(error: ValidationError, values: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "twice":
        return f"{name}: {first['msg']}"
    return f"{name} must be {Spec.model_fields[name].description}, got {values[name]!r}"


def _slug(task: str) -> str:
    words = "".join(letter if letter.isalnum() else "-" for letter in task.rpartition("/")[2])
    return words.strip("-") or "study"


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Whole batches in an epoch; a last incomplete one is left out (one example is none to BatchNorm)."""
    return max(1, math.floor(examples / batch_size))
