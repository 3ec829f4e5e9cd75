"""The settings of a study: defaults, then the task's recipe, then a TOML file, then the command line; all checked."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

import steppe
from steppe._command.devices import gpus, usable_cores, usable_device
from steppe._command.lookup import nearest
from steppe._command.settings import (
    AtLeastZero,
    Column,
    Counts,
    Expected,
    Grid,
    Modules,
    Positive,
    Seeds,
    Share,
    Two,
    Whole,
    as_list,
    listed,
    read_toml,
    validated,
)  # fmt: skip
from steppe.compare.data import tasks, transformer
from steppe.compare.data.also import ALSO
from steppe.compare.data.options import DataOptions
from steppe.compare.engine import beside
from steppe.compare.engine.grids import grids
from steppe.compare.script import settings as scripts
from steppe.compare.script.source import fingerprint, load, read_settings
from steppe.text.models import Lora

SCHEMA = 1
"""Version of the run records: a record of another version is another study's."""

DEFAULT_METHODS = ("recommended", "sam", "grst", "look_sam")
"""What is compared when nothing is named: the one to begin with, SAM, and SAM on some steps in two ways."""

_NOT_IN_RESULT = {
    "methods", "seeds", "tune_seeds", "rho", "mu", "lr_grid", "epochs_grid", "tune_lr", "tune", "grow", "step_back",
    "half", "jobs", "out", "parallel", "shard", "on", "log",
}  # fmt: skip

_LATER = {
    "text_column", "per_class", "max_length", "adapt", "lora_r", "lora_alpha", "lora_dropout", "lora_targets",
    "lora_kind", "max_steps", "metric", "warmup", "sharpness_examples", "test_curve",
    "parts", "stride", "lookback", "horizon", "targets", "time_column", "season", "leave_out",
    "target", "kind", "group", "context", "script", "settings", "also",
}  # fmt: skip
"""Settings that came when there were records already: they count in the hash where they differ from their default."""

SPELLED = {
    "text_column": ("--text-column", "--text"), "label_column": ("--label-column", "--label"),
    "lr": ("--lr", "--learning-rate"),
}  # fmt: skip
"""Flags that have a second name: what `finetune` calls the same."""


Parts = Annotated[
    list[Positive], Field(min_length=3, max_length=3), Expected("three shares (0.7,0.1,0.2) or three whole numbers")
]
Names = Annotated[list[str], BeforeValidator(listed), Field(min_length=1), Expected("a list of column names")]


def _part(value: str) -> str:
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", value)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError
    return value


def _known(names: list[str]) -> list[str]:
    if not set(names) <= set(ALSO):
        raise ValueError
    return [name for name in ALSO if name in names]


class Spec(BaseModel):
    """Everything a study needs to know, complete. Each field is a key of the TOML file and a flag (`_` becomes `-`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    task: Annotated[str, Expected("the name of a task")] = Field(
        "mnist1d-10k",
        description="mnist1d-10k, mnist1d, digits-few, digits-noisy, idx:FOLDER, images:FOLDER, "
        "text:FILE, forecast:FILE, table:FILE, lm:FILE, hf:ID, MODULE:NAME.",
    )
    script: Annotated[str | None, Expected("FILE.py:FUNCTION, such as train.py:train")] = Field(
        None, description="FILE.py:FUNCTION, training code of your own instead of a task (docs/script.md)."
    )
    settings: Annotated[dict[str, Any] | None, BeforeValidator(read_settings), Expected("name=value,name=value")] = (
        Field(None, description="Arguments of the script: width=64,epochs=20.")
    )
    methods: Annotated[list[str], BeforeValidator(as_list), Field(min_length=1), Expected("a list of method names")] = (
        Field(list(DEFAULT_METHODS), description="sam,look_sam:k=5,recommended,my.py:MySAM, ...; see `steppe methods`.")
    )
    seeds: Seeds = Field(list(range(5)), description="How many, or which: 0,1,2.")
    rho: Annotated[Grid | None, Expected("a list of radii above 0")] = Field(
        None, description="Radii to choose from, as for SAM; recommended's own are larger."
    )
    mu: Grid | None = Field(None, description="Values of mu to choose from, for BAR (as many as of rho).")
    lr_grid: Annotated[Grid | None, Expected("a list of learning rates above 0")] = Field(
        None, description="Learning rates the base chooses from; the methods train at its choice."
    )
    epochs_grid: Counts | None = Field(
        None, description="Numbers of epochs from which the base chooses, and every method together with rho."
    )
    tune_lr: Literal["base", "each"] = Field(
        "base", description="each: every method chooses its own from lr_grid, together with rho."
    )
    tune: Annotated[list[str] | None, BeforeValidator(as_list), Expected("settings and values: alpha=0.1,0.3")] = Field(
        None, description="Further settings to choose, with rho: alpha=0.1,0.3 or look_sam:k=5,10."
    )
    grow: Annotated[int, Field(ge=0, le=20), Expected("a whole number from 0 to 20")] = Field(
        2, description="Values added at the edge of a grid while the best lies there; 0: the grids as they are."
    )
    step_back: bool = Field(
        True, description="Take the next smaller value where the one above the best broke trainings and it is as good."
    )
    half: bool = Field(True, description="Train the base with half the epochs, too.")
    tune_seeds: Seeds = Field([0, 1], description="Seeds that choose rho on the validation split: how many, or which.")
    labelled: Two | None = Field(None, description="Labelled training examples.")
    per_class: Whole | None = Field(None, description="Training texts of each class, at most.")
    validation: Two | None = Field(None, description="Validation examples; never from the test set.")
    noise: Share = Field(0.0, description="Share of wrong labels, in training and validation alike.")
    model: Annotated[str, Expected("the name of a model")] = Field(
        "cnn",
        description="cnn, mlp, linear, resnet18, vit or module:function; for texts hf:FOLDER or hf:ID (docs/data.md).",
    )
    adapt: Literal["lora", "full"] = Field(
        "lora", description="How a pretrained model is trained: lora (with its head) or full."
    )
    lora_r: Whole = Field(8, description="Rank of LoRA.")
    lora_alpha: Positive = Field(16.0, description="alpha of LoRA.")
    lora_dropout: Share = Field(0.0, description="Dropout before LoRA's factors.")
    lora_targets: Modules | None = Field(None, description="Modules that get LoRA: query,value (PEFT's choice).")
    lora_kind: Literal["lora", "rslora", "dora"] = Field("lora", description="Kind of adapters.")
    epochs: Whole = Field(30, description="Epochs of every run (the base also runs with half and twice as many).")
    max_steps: Whole | None = Field(None, description="Steps of every run, instead of epochs.")
    batch_size: Whole = Field(64, description="Examples per step.")
    optimizer: Literal["sgd", "adamw", "amsgrad"] = Field("sgd", description="Base optimizer (amsgrad: AdaSAM's).")
    lr: Positive = Field(0.05, description="Learning rate.")
    momentum: Share = Field(0.9, description="Momentum of sgd.")
    weight_decay: AtLeastZero = Field(5e-4, description="Weight decay.")
    lr_schedule: Literal["cosine", "constant", "linear"] = Field(
        "cosine", description="Shape of the learning rate after the warm-up."
    )
    warmup: Share = Field(0.0, description="Share of the steps over which the learning rate rises.")
    eval_every: Annotated[
        Whole | None, Expected("a whole number of epochs (of steps, with max_steps) of at least 1")
    ] = Field(None, description="Epochs (steps, with max_steps) between looks at the validation set (a tenth).")
    test_curve: Whole = Field(500, description="Test examples of the learning curve, at most.")
    sharpness_rho: Positive = Field(0.05, description="Radius at which sharpness is measured.")
    sharpness_examples: Whole | None = Field(None, description="Training examples it is measured on (all).")
    image_size: Annotated[int, Field(ge=8), Expected("a whole number of at least 8 (pixels)")] | None = Field(
        None, description="Resize images to this many pixels a side."
    )
    image_column: Column | None = Field(None, description="Image column of an hf: task.")
    text_column: Annotated[str, Expected("the name of a column, or of two: premise,hypothesis")] | None = Field(
        None, description="Text column of a text: task with columns; two for pairs: a,b."
    )
    max_length: Annotated[int, Field(ge=2), Expected("a whole number of tokens of at least 2")] | None = Field(
        None, description="Tokens after which a text is cut."
    )
    lookback: Whole | None = Field(None, description="Rows that a forecast is made from (336).")
    horizon: Whole | None = Field(None, description="Rows that are forecast (96).")
    targets: Names | None = Field(None, description="Columns that are forecast: a,b (all).")
    time_column: Column | None = Field(None, description="Time column of a forecast: task (found if there is one).")
    season: Two | None = Field(None, description="Rows after which a series repeats, for a naive forecast (a day).")
    target: Column | None = Field(None, description="Column that a table: task is to tell from the others.")
    kind: Literal["classes", "numbers"] | None = Field(
        None, description="What the target is (classes: words, or at most ten whole numbers)."
    )
    group: Column | None = Field(
        None, description="Column whose rows of one value (a patient, a user) stay in one part; of images: folder."
    )
    context: Two | None = Field(None, description="Bytes of an example of an lm: task (64).")
    leave_out: Names | None = Field(None, description="Columns of a file that are not used: a,b.")
    parts: Parts | None = Field(
        None, description="Training, validation, test in turn: shares (0.7,0.1,0.2) or numbers of rows or bytes."
    )
    stride: Whole | None = Field(None, description="Rows or bytes between two training windows.")
    metric: Annotated[str, Expected("the name of a metric")] | None = Field(
        None, description="The metric that chooses and judges (the task's first); of a script also NAME:lower."
    )
    also: (
        Annotated[
            list[str],
            BeforeValidator(listed),
            Field(min_length=1),
            AfterValidator(_known),
            Expected("calibration, quantized or noise, or several of them"),
        ]
        | None
    ) = Field(None, description="Measured on the final weights too: calibration,quantized,noise (docs/also.md).")
    label_column: Column | None = Field(None, description="Label column of an hf: or text: task.")
    device: Annotated[str, Expected("'auto', 'cpu', 'cuda' or 'cuda:0'")] = Field(
        "auto", description="auto, cpu, cuda or cuda:0."
    )
    parallel: Literal["ddp", "fsdp"] | None = Field(None, description="Under torchrun: every run on all its processes.")
    jobs: Annotated[int, Field(ge=1, le=256), Expected("a whole number from 1 to 256")] | None = Field(
        None, description="Runs side by side (one per core)."
    )
    on: Annotated[str, Field(min_length=1), Expected("local, dask:ADDRESS or slurm:partition=...,gpus=1")] = Field(
        "local", description="Where runs are made: local, dask:ADDRESS, slurm[:partition=...,gpus=1]."
    )
    shard: Annotated[str, AfterValidator(_part), Expected("i/n with i from 1 to n, such as 2/4")] | None = Field(
        None, description="2/4: the second of four processes, of any machines, that share the study in one folder."
    )
    log: Annotated[list[str], BeforeValidator(listed), Expected("a list of trackers")] = Field(
        [], description="Trackers that get every run: tensorboard, wandb, mlflow, trackio; offline, in the folder."
    )
    out: Annotated[str, Field(min_length=1), Expected("a folder")] = Field(
        "", description="Folder for results (results/<task>); the same command there resumes."
    )

    def data_options(self) -> DataOptions:
        """What decides the examples."""
        found: dict[str, Any] = {name: getattr(self, name) for name in DataOptions.__dataclass_fields__}
        found |= {name: tuple(each) for name, each in found.items() if isinstance(each, list)}
        return DataOptions(**found)

    def hash(self) -> str:
        """A hash of all that decides what a run of given method, rho and seed results in."""
        plain = {name for name in _LATER if getattr(self, name) == type(self).model_fields[name].default}
        decisive = self.model_dump(exclude=_NOT_IN_RESULT | plain)
        decisive |= {"parallel": self.parallel} if self.parallel else {}
        if self.script is not None:
            data = fingerprint(self.script)
        else:
            data = tasks.fingerprint(self.task)
        model = tasks.model_fingerprint(self.model)
        decisive |= {"model_files": model} if model else {}
        decisive |= {"weights": pretrained} if (pretrained := transformer.fingerprint(self.model)) else {}
        decisive |= {"schema": SCHEMA, "steppe": steppe.__version__, "data": data}
        return short_hash(decisive)

    @property
    def variants(self) -> tuple[str, ...]:
        """Those of the base, the longest first: a script says by its argument `length` what it can train."""
        script = None if self.script is None else load(self.script)
        if script and not script.takes("length"):
            return ("plain",)
        return ("double", "plain", "half") if self.half and (script is None or script.halves) else ("double", "plain")

    def lora(self) -> Lora | None:
        """The adapters of a pretrained model, None where all of it is trained."""
        if self.adapt == "full" or not self.model.startswith(transformer.PREFIX):
            return None
        targets = tuple(self.lora_targets) if self.lora_targets else None
        return Lora(self.lora_r, self.lora_alpha, self.lora_dropout, targets, self.lora_kind)

    @property
    def grids(self) -> dict[str, list[float]]:
        """The values to choose from by the name of the setting: rho; mu or sigma for methods that have no radius."""
        return grids(self.rho, self.mu)

    def steps(self, per_epoch: int, epochs: int | None = None) -> int:
        """Optimizer steps of a run of the settings' epochs, or of others, where `per_epoch` make an epoch."""
        return self.max_steps or (epochs or self.epochs) * per_epoch

    def every(self, per_epoch: int, epochs: int | None = None) -> int:
        """Steps between two looks at the validation part: about ten looks in such a run."""
        if self.max_steps:
            return self.eval_every or max(1, self.max_steps // 10)
        return (self.eval_every or max(1, (epochs or self.epochs) // 10)) * per_epoch

    @property
    def part(self) -> tuple[int, int] | None:
        """Which of how many processes this one is."""
        if self.shard is None:
            return None
        i, _, n = self.shard.partition("/")
        return int(i), int(n)

    @property
    def workers(self) -> int:
        """How many runs go side by side: one per core, at most four on each GPU."""
        cores = usable_cores()
        return self.jobs or (cores if self.device == "cpu" else min(4 * gpus(self.device), cores))


def short_hash(value: Any) -> str:
    """Twelve hex digits that stand for a JSON-like value."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()


def resolve(flags: Mapping[str, Any], config: Path | None = None) -> Spec:
    """The complete, checked settings; flags (None: not given) win over the TOML file with the same keys."""
    given = read_toml(config) if config else {}
    _check_keys(given, f"{config}: ")
    given |= {key: value for key, value in flags.items() if value is not None}
    first = _validated(given)
    scripts.check(given, first.settings)
    spec = _validated(beside.fitting(beside.proposed(first, given), given) | given)
    beside.check_together(spec, given)
    device = usable_device(spec.device) if spec.on == "local" else spec.device
    out = spec.out or f"results/{_slug(spec.task)}"
    return spec.model_copy(update={"device": device, "out": out})


def _check_keys(given: Mapping[str, Any], where: str) -> None:
    for key in given:
        if key not in Spec.model_fields:
            raise ValueError(f"{where}unknown setting {key!r}; {nearest(key, Spec.model_fields)}")


def _validated(values: Mapping[str, Any]) -> Spec:
    _check_keys(values, "the task's recipe: ")
    return validated(Spec, values)


def kept_spec(found: Mapping[str, Any], folder: Path) -> Spec:
    """The settings of a study as its `spec.json` has them; what they do not speak of was not there yet."""
    settings = {name: value for name, value in found.items() if name in Spec.model_fields}
    return Spec.model_validate({"step_back": False, "half": False} | settings | {"out": str(folder)})


def _slug(task: str) -> str:
    words = "".join(letter if letter.isalnum() else "-" for letter in task.rpartition("/")[2])
    return words.strip("-") or "study"


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Whole batches in an epoch; a last incomplete one is left out (one example is none to BatchNorm)."""
    return max(1, math.floor(examples / batch_size))
