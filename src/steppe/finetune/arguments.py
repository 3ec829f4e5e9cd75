"""Arguments of the Hugging Face Trainer as a user types them: checked against its fields, with the defaults here."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from steppe._command.lookup import near, nearest

if TYPE_CHECKING:
    from steppe.finetune.spec import Spec

_OURS = {
    "output_dir": "--out", "resume_from_checkpoint": "--resume", "seed": "--seed", "do_train": "", "do_eval": "",
    "do_predict": "", "remove_unused_columns": "", "disable_tqdm": "", "label_names": "", "local_rank": "",
    "save_only_model": "", "restore_callback_states_from_checkpoint": "",
}  # fmt: skip
SHORT = {
    "epochs": "num_train_epochs", "lr": "learning_rate", "batch_size": "per_device_train_batch_size",
    "lr_schedule": "lr_scheduler_type", "warmup": "warmup_steps", "log": "report_to",
}  # fmt: skip
"""What `steppe compare` calls an argument -> what the Trainer does."""
_ABOVE_ZERO = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate",
    "logging_steps", "save_steps", "num_train_epochs",
)  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "lr_scheduler_type": "linear", "optim": "adamw_torch", "weight_decay": 0.0, "logging_steps": 0.02,
    "save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 2, "report_to": "none",
    "logging_nan_inf_filter": False,  # which logs a loss of 0.0 where it is NaN
}  # fmt: skip
_WORDS = {"include_num_input_tokens_seen": ("all", "non_padding", "no")}
"""What an argument takes beside true and false, of which alone the Trainer's parser knows."""
# (language model, everything trained) -> learning rate, examples per step, epochs
_USUAL = {
    (False, False): (5e-4, 16, 3.0), (False, True): (2e-5, 16, 3.0),
    (True, False): (2e-4, 8, 1.0), (True, True): (1e-5, 8, 1.0),
}  # fmt: skip


def known() -> tuple[str, ...]:
    """The Trainer's arguments that a user may set."""
    return tuple(name for name in _fields() if name not in _OURS)


@cache
def _fields() -> tuple[str, ...]:
    from transformers import TrainingArguments

    return tuple(field.name for field in dataclasses.fields(TrainingArguments))


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """``key=value`` texts as they stand after ``--set``."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise ValueError(f"--set {text!r} is no setting; write --set name=value, such as --set learning_rate=3e-4")
        name = key.replace("-", "_")
        _once(found, SHORT.get(name, name), value)
    return found


def flags(words: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Arguments of the Trainer as flags of their own: ``--max-steps 20``, ``--bf16``, ``--optim=sgd``.

    The names of the command's own flags, `others`, are for the hint.
    """
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise ValueError(f"unexpected argument {word!r}; every setting is a flag, such as --data {word}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        name = key.replace("-", "_")
        name = SHORT.get(name, name)
        if name not in _fields():
            names = [each.replace("_", "-") for each in (*others, *SHORT, *known())]
            meant = near(key, names)
            raise ValueError(
                f"unknown flag --{key}; {f'did you mean --{meant}?' if meant else 'see steppe finetune --help'}"
            )
        _once(found, name, value)
    return found


def _once(found: dict[str, str], key: str, value: str) -> None:
    if key in found:
        raise ValueError(f"{key} is given twice; give it once")
    found[key] = value


def complete(asked: Mapping[str, Any], settings: Spec) -> dict[str, Any]:
    """The arguments that were asked for as the Trainer's types, over the defaults for the task."""
    rate, batch, epochs = _USUAL[settings.language, settings.full]
    usual = {"learning_rate": rate, "per_device_train_batch_size": batch, "num_train_epochs": epochs}
    usual["per_device_eval_batch_size"] = 8 if settings.language else 64
    given = {key: _typed(key, value) for key, value in asked.items()}
    if settings.patience is not None:
        usual["load_best_model_at_end"] = True
    taken = usual | _DEFAULTS | given
    if taken.get("load_best_model_at_end") and taken["save_strategy"] in ("steps", "epoch"):
        also = {"eval_strategy": taken["save_strategy"]}  # what is saved is looked at: the best may be any of them
        taken = also | ({"eval_steps": taken["save_steps"]} if taken["save_strategy"] == "steps" else {}) | taken
    _check_patience(settings, taken)
    for key in filter(taken.__contains__, _ABOVE_ZERO):
        if not (isinstance(taken[key], (int, float)) and taken[key] > 0 and math.isfinite(taken[key])):
            raise ValueError(f"{key} must be a number above 0, got {taken[key]!r}")
    if taken.get("max_steps", -1) != -1 and taken["max_steps"] < 1:
        raise ValueError(
            f"max_steps must be at least 1 (or -1: as many as the epochs have), got {taken['max_steps']!r}"
        )
    return taken


def evaluates(training: Mapping[str, Any]) -> bool:
    """Whether the Trainer looks at examples beside those it trains on, to choose or to report."""
    return bool(
        training.get("load_best_model_at_end")
        or training.get("eval_on_start")
        or training.get("save_strategy") == "best"
        or training.get("eval_strategy", "no") != "no"
        or training.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
    )


def _check_patience(settings: Spec, taken: Mapping[str, Any]) -> None:
    if settings.patience is not None and taken.get("eval_strategy", "no") == "no":
        raise ValueError(
            f"patience = {settings.patience} counts looks at the validation examples, and with eval_strategy = 'no' "
            "(save_strategy = 'no') there are none; set --eval-strategy steps or epoch"
        )


def _typed(key: str, value: Any) -> Any:
    """``value`` as the Trainer's own parser of command lines reads it."""
    if key in _OURS:
        instead = f"use {_OURS[key]}" if _OURS[key] else "leave it out"
        raise ValueError(f"{key} is set by steppe finetune itself; {instead}")
    if key not in _fields():
        raise ValueError(f"the Hugging Face Trainer has no argument {key!r}; {_hint(key)}")
    if isinstance(value, dict) or value in _WORDS.get(key, ()):
        return value
    try:
        if str(value).startswith("{"):
            return json.loads(value)
        words = map(str, value if isinstance(value, (list, tuple)) else [value])
        read = getattr(_parser().parse_args([f"--{key}", *words]), key)
    except ValueError as error:
        why = str(error).partition(": ")[2] or str(error)
        raise ValueError(f"{key} = {value!r} is not what the Trainer takes: {why}") from None
    return getattr(read, "value", read)  # enumerations by their value, so that settings are JSON


def _hint(key: str) -> str:
    found = nearest(key, known())
    return found if found.startswith("did") else "see the fields of transformers.TrainingArguments"


@cache
def _parser() -> Any:
    from transformers import HfArgumentParser, TrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

    return Parser(TrainingArguments, allow_abbrev=False, add_help=False)  # type: ignore[arg-type]
