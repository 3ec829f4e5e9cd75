"""The settings of a fine-tuning: defaults, then a recipe, then the command line; all checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from steppe._command.lookup import nearest
from steppe._command.saved import weights
from steppe._command.settings import Expected, Modules, Name, Positive, Share, Whole, validated
from steppe.finetune import arguments
from steppe.finetune.folder import Folder
from steppe.finetune.method import check as check_method
from steppe.finetune.recipes import recipe
from steppe.text.models import KINDS, Lora
from steppe.text.rows import HUB

LANGUAGE = "causal-lm"
TRAIN = "train"
"""The split of a hub's data set that is read where none is named."""
VALIDATION = 0.1
"""The share of the training examples that validates where a setting needs it and none is given."""
_CLASSIFY_ONLY, _LANGUAGE_ONLY = ("text", "label", "per_class"), ("prompt", "response", "packing")
_OF_DATA = (
    "split", "test", "test_split", "validation", "validation_split", "text", "label", "prompt", "response",
)  # fmt: skip
_LORA_ONLY = ("r", "alpha", "dropout", "targets", "kind")


def _share_or_source(value: Any) -> Any:
    """A number that came as text, as from a command line."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_share(value: Any) -> Any:
    if isinstance(value, float) and not 0 < value < 1:
        raise ValueError
    return value


SPELLED = {
    "full": ("--full/--lora",), "text": ("--text", "--text-column"), "label": ("--label", "--label-column"),
    "examples": ("--examples", "--labelled"), "r": ("--r", "--lora-r"), "alpha": ("--alpha", "--lora-alpha"),
    "dropout": ("--dropout", "--lora-dropout"), "targets": ("--targets", "--lora-targets"),
    "kind": ("--kind", "--lora-kind"),
}  # fmt: skip
"""Flags that are not the field's name alone: the second is what `compare` calls the same."""


class Spec(BaseModel):
    """Everything a fine-tuning needs to know, complete. Each field is a flag (`_` becomes `-`) and a recipe's key."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    model: Name = Field(description="Folder of a saved model, or an id of the Hugging Face hub.")
    data: Name = Field(description="FILE.jsonl, FILE.csv, a file of lines `LABEL text`, or hf:DATASET.")
    split: Name | None = Field(None, description="Split of an hf: data set (train).")
    test: Name | None = Field(
        None, description="Test data in the same form; without it a share of the data is held out."
    )
    test_split: Name | None = Field(None, description="Split of an hf: test, needed there.")
    task: Literal["classify", "causal-lm"] = Field("classify", description="What is learnt.")
    text: Name = Field("text", description="Column of the text, or two for pairs: premise,hypothesis.")
    label: Name = Field("label", description="Column of the label.")
    prompt: Name = Field("prompt", description="Column of the prompt.")
    response: Name = Field("response", description="Column of the response; the loss is on it alone.")
    examples: Whole | None = Field(None, description="At most so many training examples.")
    per_class: Whole | None = Field(None, description="At most so many training examples of each class.")
    held_out: Annotated[float, Field(gt=0, lt=1), Expected("a share between 0 and 1")] = Field(
        0.1, description="Share held out where there is no test data."
    )
    validation: Annotated[
        float | Name | None,
        BeforeValidator(_share_or_source),
        AfterValidator(_check_share),
        Expected("a share between 0 and 1, or data in the form of the training data"),
    ] = Field(
        None, description="Share of the training examples (0.1), or data, that choose: best checkpoint, early stopping."
    )
    validation_split: Name | None = Field(None, description="Split of an hf: validation, needed there.")
    patience: Whole | None = Field(None, description="Stop after so many looks at the validation without a better one.")
    method: Annotated[str, Expected("the name of a method")] = Field(
        "", description="base, nbar, sam, look_sam:k=5, my.py:MySAM, ...; see `steppe methods` (nbar; with --full sam)."
    )
    full: bool = Field(False, description="Train everything, or LoRA (the default).")
    adapter: Name | None = Field(None, description="Folder of a PEFT adapter to train further.")
    r: Whole = Field(8, description="LoRA's rank; under torchrun write --lora-r.")
    alpha: Positive = Field(16.0, description="LoRA's alpha.")
    dropout: Share = Field(0.0, description="LoRA's dropout.")
    targets: Modules | None = Field(None, description="Modules that get adapters: query,value or all-linear.")
    kind: Annotated[Literal["lora", "rslora", "dora"], Expected(f"one of {', '.join(KINDS)}")] = Field(
        "lora", description="Kind of adapters."
    )
    max_length: Annotated[int, Field(ge=2), Expected("a whole number of at least 2 (tokens)")] | None = Field(
        None, description="Tokens of an example (128; causal-lm 512); what is longer is cut."
    )
    packing: bool = Field(False, description="Several dialogues in a block of --max-length.")
    seed: Annotated[int, Field(ge=0, lt=2**31), Expected("a whole number from 0 to 2147483647")] = Field(
        0, description="Draws everything that is random."
    )
    out: Name = Field(description="Folder of the result (results/finetune/<model>-<data>-<method>).")
    training: dict[str, Any]

    @property
    def language(self) -> bool:
        """Whether a language model is trained."""
        return self.task == LANGUAGE

    @property
    def lora(self) -> Lora | None:
        """The adapters, or None where everything is trained."""
        if self.full:
            return None
        return Lora(self.r, self.alpha, self.dropout, tuple(self.targets) if self.targets else None, self.kind)

    @property
    def length(self) -> int:
        """The most tokens of an example, before the model has its say."""
        return self.max_length or (512 if self.language else 128)

    def decisive(self) -> dict[str, Any]:
        """What the result depends on: all but the place it is written to."""
        return self.model_dump(exclude={"out"})

    def fingerprint(self) -> list[str]:
        """A hash of each file's content, by which a resumed run sees that its data is what it was."""
        sources = (self.data, self.test, self.validation)
        paths = [Path(source) for source in sources if isinstance(source, str) and not source.startswith(HUB)]
        return [hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() for path in paths]

    def weights(self) -> list[str]:
        """The same of the model and the adapter that it begins with."""
        return [weights(each) for each in (self.model, self.adapter) if each is not None]


def resolve(flags: Mapping[str, Any], training: Mapping[str, Any] | None = None, name: str | None = None) -> Spec:
    """The complete, checked settings.

    Args:
        flags: what was given, by field (None: not given).
        training: arguments of the Hugging Face Trainer, by name.
        name: of a recipe, or the path of a TOML file of one; flags win.

    Raises:
        ValueError: one sentence about the first thing that is wrong.
    """
    base = recipe(name) if name else {}
    given = {key: value for key, value in flags.items() if value is not None}
    asked = dict(base.pop("training", {})) | dict(training or {})
    whole = _dropped(base, given) | given
    _check_needs(whole, name)
    whole["method"] = check_method(whole.get("method") or ("sam" if whole.get("full") else "nbar"))
    whole.setdefault("out", _place(given if name else whole, name, whole))
    first = validated(Spec, whole | {"training": {}})
    _check_fit(first, given)
    training = arguments.complete(asked, first)
    if first.validation is None and arguments.evaluates(training):
        whole["validation"] = VALIDATION
    return validated(Spec, whole | {"training": training})


def resumed(flags: Mapping[str, Any], training: Mapping[str, Any] | None = None, name: str | None = None) -> Spec:
    """The settings of a run that is to go on: those given again, or, with its folder alone, those it was begun with."""
    out = flags.get("out")
    if name or flags.get("model") or not out:
        return resolve(flags, training, name)
    begun = dict(Folder(out).check_resumable()["settings"])
    given = {key: value for key, value in flags.items() if value is not None}
    if "method" in given:
        given["method"] = check_method(given["method"])
    first = validated(Spec, begun | given)
    asked = first.training | dict(training or {})
    return validated(Spec, begun | given | {"training": arguments.complete(asked, first)})


def _dropped(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings, without those of its data (model) where other data (another model) is given."""
    its = {*(_OF_DATA if "data" in given else ()), *(["targets"] if "model" in given else ())}
    return {key: value for key, value in base.items() if key not in its}


def _check_needs(whole: Mapping[str, Any], name: str | None) -> None:
    for key in whole:
        if key not in Spec.model_fields or key == "training":
            raise ValueError(f"unknown setting {key!r}; {nearest(key, Spec.model_fields)}")
    for key, what in (("model", "the folder of a saved model or an id of the hub"), ("data", "a file or hf:DATASET")):
        if key not in whole:
            hint = f"; the recipe {name!r} brings none" if name else "; with nothing at all an embedded example runs"
            raise ValueError(f"--{key} is missing: give {what}{hint}")


def _check_fit(settings: Spec, given: Mapping[str, Any]) -> None:
    """Refuse what was given and would have no effect."""
    unused = _CLASSIFY_ONLY if settings.language else _LANGUAGE_ONLY
    for key in (key for key in unused if given.get(key)):
        raise ValueError(f"{key} has no effect with the task {settings.task!r}; leave it out, or change --task")
    for key in (key for key in _LORA_ONLY if key in given and (settings.full or settings.adapter)):
        why = "everything is trained (--full)" if settings.full else "an adapter is given, which brings its own"
        raise ValueError(f"{key} is a setting of new LoRA adapters, but {why}; leave one of the two out")
    if settings.full and settings.adapter:
        raise ValueError("--full trains everything and --adapter an adapter; leave one of the two out")
    if settings.test_split and not settings.test:
        raise ValueError(f"test_split={settings.test_split!r} is given without test; name the data with --test")
    if settings.test and "held_out" in given:
        raise ValueError("held_out keeps a share of the training data for the test, but --test is given; leave one out")
    if settings.validation_split and not isinstance(settings.validation, str):
        raise ValueError(
            f"validation_split={settings.validation_split!r} is given without validation data; name them with "
            "--validation"
        )
    training = ("training", settings.data, settings.split or TRAIN)
    if settings.test:
        _check_other("test", settings.test, settings.test_split, training)
    if isinstance(settings.validation, str):
        given_there = "validation", settings.validation, settings.validation_split
        _check_other(*given_there, training)
        if settings.test:
            _check_other(*given_there, ("test", settings.test, settings.test_split))


def _check_other(what: str, source: str, split: str | None, other: tuple[str, str, str | None]) -> None:
    """Refuse to test (validate) with the training data, or to choose with the test's."""
    if source.startswith(HUB) and not split:
        raise ValueError(
            f"--{what} {source} is given without --{what}-split, and a hub's data set has several: name one, such as "
            f"--{what}-split validation"
        )
    kind, its, its_split = other
    if (source == its or _one_file(source, its)) and (not source.startswith(HUB) or split == its_split):
        named = f", split {split!r}," if split else ""
        instead = f"leave --{what} out and a share of the training data is held out"
        if what == "validation":
            instead = "give a share of the training data, such as --validation 0.1"
        raise ValueError(f"--{what} {source}{named} is the {kind} data itself; give other examples, or {instead}")


def _one_file(a: str, b: str) -> bool:
    try:
        return Path(a).samefile(b)
    except OSError:
        return False  # one is not there, which is said where it is read


def _place(shown: Mapping[str, Any], name: str | None, whole: Mapping[str, Any]) -> str:
    """The default folder, from what is most likely to differ between two runs: of a recipe, what was not its own."""
    data = str(shown.get("data", ""))
    stem = data.removeprefix(HUB) if data.startswith(HUB) else Path(data).stem
    words = [name or "", _model_name(str(shown.get("model", ""))), stem]
    words += [str(whole["method"]) if "method" in shown else "", f"seed{whole['seed']}" if whole.get("seed") else ""]
    return "results/finetune/" + "-".join(re.sub(r"[^\w.-]+", "_", word).strip("_") for word in words if word)


def _model_name(model: str) -> str:
    """The folder's name, or its parent's where that says only "model"."""
    path = Path(model)
    return path.parent.name if path.name in ("model", "checkpoint", "final") and path.parent.name else path.name
