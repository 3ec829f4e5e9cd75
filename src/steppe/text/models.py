"""Pretrained models from a folder or the hub, with a new head, with LoRA or whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from steppe._command.lookup import first_line, nearest
from steppe._command.saved import base_and_adapter
from steppe._parts import check_choice
from steppe.text import heads
from steppe.text.adapters import with_adapter
from steppe.text.hub import silent

KINDS = ("lora", "rslora", "dora")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: W + s B A with A (r, in) drawn at random, B (out, r) zero, W frozen.

    Args:
        r: rank, >= 1.
        alpha: s = alpha/r ("rslora": alpha/sqrt(r)), > 0.
        dropout: on the adapter's input, in [0, 1).
        targets: names of the modules that get one, such as ("query", "value"); None takes PEFT's choice for the
            architecture, which is the attention's query and value, or every linear layer where PEFT has none.
        kind: "lora", "rslora" or "dora" (B A changes the direction, a vector the length of W's rows).

    Source: arXiv 2106.09685 (LoRA), 2312.03732 (rsLoRA), 2402.09353 (DoRA).
    """

    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    kind: str = "lora"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r must be a whole number of at least 1, got {self.r!r}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be a number above 0, got {self.alpha!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a share from 0 up to, not including, 1, got {self.dropout!r}")


def classifier(path: str, classes: int | Sequence[str], lora: Lora | None, seed: int) -> tuple[nn.Module, Any]:
    """A pretrained model with a classification head, and its tokenizer.

    The head is fresh unless the model has one for the same classes (:func:`steppe.text.heads.load`). All of it is
    float32, whatever the checkpoint is in: half precision gives a trained head NaN (float16) or rounds its steps away
    (bfloat16). Autocast (the Trainer's ``bf16``) saves memory without that harm.

    Args:
        path: folder of a saved model, of an adapter or of a fine-tuning (the adapter becomes part of the weights), or
            an id of the hub.
        classes: how many, at least 2, or their names (saved with the model).
        lora: adapters; the head, and whatever else the checkpoint lacks, is trained and saved too. None: everything is
            trained.
        seed: draws head and adapters; the global generator is left as it was.
    """
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
    if len(names) < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {len(names)}; the data has one label only")

    base, adapter = base_and_adapter(path)

    def load(**how: Any) -> tuple[Any, list[str]]:
        made, new = heads.load(base, names, **how)
        made = _merged(made, adapter, classify=True)
        # Its loss is the mean over a batch whatever it is told of the items in an accumulated batch, so the Trainer has
        # to divide by accumulation steps, and must not multiply by processes: it takes any **kwargs for a promise.
        made.accepts_loss_kwargs = False
        return made, new

    made, tokenizer = _made(base, seed, lora, "SEQ_CLS", load)
    if getattr(made.config, "summary_type", None) != "last":  # as XLNet, which reads the last token, padding or not
        tokenizer.padding_side = "right"  # on the left, padding moves a text to other positions
    return made, tokenizer


def causal(path: str, lora: Lora | None, seed: int, *, frozen: bool = False) -> tuple[nn.Module, Any]:
    """A pretrained language model and its tokenizer; arguments and errors as in :func:`classifier`.

    In float32 where everything is trained, whatever the checkpoint is in: in half precision most steps of a fine-tuning
    round to nothing. Under adapters the frozen weights stay as they were saved, which takes half the memory, and the
    adapters are float32.

    Args:
        path: folder or hub id.
        lora: adapters; None: everything is trained.
        seed: draws the adapters.
        frozen: the weights stay as they were saved without ``lora`` too: they will be frozen under a saved adapter.
    """
    from transformers import AutoModelForCausalLM as Auto

    base, adapter = base_and_adapter(path)

    def load(**how: Any) -> tuple[Any, list[str]]:
        made = Auto.from_pretrained(base, dtype="auto" if frozen or lora else torch.float32, **how)
        return _merged(made, adapter, classify=False), []

    return _made(base, seed, lora, "CAUSAL_LM", load)


def trained(path: str, names: Sequence[str] | None) -> tuple[Any, Any]:
    """What a fine-tuning left in a folder, adapter and all, and its tokenizer; without names a language model."""
    base, adapter = base_and_adapter(path)
    made = causal(base, None, 0, frozen=adapter is not None) if names is None else classifier(base, names, None, 0)
    return (made[0] if adapter is None else with_adapter(made[0], adapter, classify=names is not None)), made[1]


def _merged(model: Any, adapter: str | None, classify: bool) -> Any:
    """The model with a saved adapter become part of its weights: where an earlier fine-tuning left off."""
    if adapter is None:
        return model
    made: Any = with_adapter(model, adapter, classify)
    return made.merge_and_unload().requires_grad_(True)


def _made(
    path: str, seed: int, lora: Lora | None, task: str, load: Callable[..., tuple[Any, list[str]]]
) -> tuple[nn.Module, Any]:
    tokenizer = tokenizer_of(path)
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        model, new = _loaded(path, load)
        model.config.pad_token_id = tokenizer.pad_token_id
        return (model if lora is None else with_lora(model, lora, task, new)), tokenizer


def tokenizer_of(path: str) -> Any:
    """The tokenizer beside the model; one without a padding token pads with its end of text."""
    from transformers import AutoTokenizer

    with quiet():
        tokenizer = _loaded(path, partial(AutoTokenizer.from_pretrained, path))
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer of {path} has neither a padding nor an end-of-text token; give it one")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_lora(model: Any, lora: Lora, task: str, new: Sequence[str] = ()) -> nn.Module:
    """``model`` frozen, with adapters for PEFT's task type "SEQ_CLS" or "CAUSAL_LM".

    Args:
        model: as loaded.
        lora: the adapters; they are float32 over weights of any precision.
        task: PEFT's task type.
        new: names of modules that are trained as they are, and saved with the adapters.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=_targets(model, lora),  # type: ignore[arg-type]
        use_rslora=lora.kind == "rslora", use_dora=lora.kind == "dora",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()), task_type=task,
        modules_to_save=list(new) or None,
    )  # fmt: skip
    return get_peft_model(model, config)


def _targets(model: Any, lora: Lora) -> list[str] | str | None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    if lora.targets is None:
        return None if model.config.model_type in KNOWN else "all-linear"
    leaves = dict.fromkeys(name.rpartition(".")[2] for name, _ in model.named_modules() if name)
    ends = [name for name, _ in model.named_modules()]
    for target in lora.targets:
        if target != "all-linear" and not any(name == target or name.endswith("." + target) for name in ends):
            raise ValueError(f"the model has no module {target!r} to adapt; {nearest(target, leaves)}")
    return "all-linear" if "all-linear" in lora.targets else list(lora.targets)


def _loaded(path: str, load: Callable[..., Any]) -> Any:
    from safetensors import SafetensorError

    try:
        return load(**({"local_files_only": True} if not os.path.isdir(path) and silent(path, "model") else {}))
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        why = first_line(error)
        if os.path.isdir(path):
            raise ValueError(f"cannot load a model from the folder {path}: {why}") from error
        raise ValueError(
            f"cannot get the model {path!r}: it is no folder here, and the hub does not give it "
            f"({why}); give the folder of a saved model, or go online for an id of the hub"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes on new heads and the bars of loading: what is new is known here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
