"""The model under evaluation, as lm-eval holds it; refused early where it cannot answer such questions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from lm_eval.models.huggingface import HFLM
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as SEQ2SEQ,
)

from steppe.evaluate.request import Request, adapter_config, translated


def sources(request: Request) -> tuple[str, str | None]:
    """The base model and the adapter, either of which the user may have named alone."""
    if request.adapter is None and not adapter_config(request.model).is_file():
        return request.model, None
    adapter = request.adapter or request.model
    notes = _notes(adapter)
    if request.adapter is None:
        return _base_of(adapter, notes), adapter
    if not (request.same_base or _same_base(notes.base_model_name_or_path, request.model)):
        raise ValueError(
            f"adapter {adapter} belongs to {notes.base_model_name_or_path!r}, and {request.model!r} was given; "
            "give that model, or --same-base if this is a copy of it under another name"
        )
    return request.model, adapter


def load(request: Request) -> HFLM:
    """Load model and adapter as lm-eval does by itself, but for weights that it would tie anew behind the adapter."""
    base, adapter = sources(request)
    _check_causal(base)
    lm = translated(
        lambda: _quietly(
            pretrained=base, peft=adapter, dtype=request.dtype, device=request.device, batch_size=request.batch_size
        ),
        f"adapter {adapter} could not be put on {base}: most likely it belongs to another model"
        if adapter
        else f"model {base} could not be loaded",
    )
    if adapter:
        _check_complete(lm.model, base, adapter)
    return lm


def _quietly(**arguments: Any) -> HFLM:
    """Without PEFT's warnings of tensors that are missing: :func:`_check_complete` refuses those."""
    with warnings.catch_warnings(), _adapted_as_it_is():
        warnings.simplefilter("ignore")
        return HFLM(**arguments)


@contextmanager
def _adapted_as_it_is() -> Iterator[None]:
    """In the block nothing is tied behind an adapter.

    lm-eval ties the weights of the model once more when the adapter is on it: an embedding that the adapter brings
    would be the head too, which PEFT leaves as the base has it, and one that is a layer of its own cannot be tied.
    """
    kind: Any = PeftModel  # which hands the call on to the model within
    kind.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del kind.tie_weights


def _notes(adapter: str) -> PeftConfig:
    if os.path.isdir(adapter) and not adapter_config(adapter).is_file():
        raise ValueError(f"{adapter} is no PEFT adapter: it has no adapter_config.json")
    notes = translated(
        lambda: PeftConfig.from_pretrained(adapter),
        f"adapter {adapter} could not be read: expected a folder that PEFT saved, or a hub id while the hub is there",
    )
    kind = getattr(notes.task_type, "value", notes.task_type)
    if kind not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
        hint = "; what it answers is told by steppe predict" if kind == "SEQ_CLS" else ""
        raise ValueError(f"adapter {adapter} was trained for {kind}; expected one of a causal language model{hint}")
    return notes


def _base_of(adapter: str, notes: PeftConfig) -> str:
    base = notes.base_model_name_or_path
    if not base:
        raise ValueError(f"adapter {adapter} does not name its base; give the base model, and this as --adapter")
    return base


def _same_base(noted: str | None, given: str) -> bool:
    """Whether a base that moved may still be the one: by its last name, or its place in the hub's cache."""
    cached = "models--" + (noted or "").replace("/", "--")
    return not noted or PurePath(noted).name == Path(given).resolve().name or cached in PurePath(given).parts


def _check_causal(base: str) -> None:
    if os.path.isdir(base) and not (Path(base) / "config.json").is_file():
        raise ValueError(f"model folder {base} has no config.json; expected what save_pretrained writes")
    config = translated(
        lambda: AutoConfig.from_pretrained(base),
        f"model {base} could not be found or read: expected a folder here, or a hub id while the hub is there",
    )
    kinds = config.architectures or []
    if not {*kinds} & {*CAUSAL.values(), *SEQ2SEQ.values()}:
        raise ValueError(
            f"model {base} is a {', '.join(kinds) or 'model of unnamed architecture'}; expected a causal language "
            "model (such as GPT2LMHeadModel or LlamaForCausalLM), which can score an answer"
        )


def _check_complete(model: Any, base: str, adapter: str) -> None:
    """PEFT only warns of tensors that do not fit; a half-loaded adapter would be measured as if it were whole."""
    here = {key for key in get_peft_model_state_dict(model, save_embedding_layers=False) if not _of_the_base(key)}
    there = {key for key in load_peft_weights(adapter, device="cpu") if not _of_the_base(key)}
    if here != there:
        odd = sorted(here ^ there)[0]
        raise ValueError(
            f"adapter {adapter} belongs to another model than {base}: {len(here ^ there)} tensors do not match, "
            f"the first is {odd}"
        )


def _of_the_base(key: str) -> bool:
    """Embeddings and heads of the base's, which PEFT saves along where it sees fit."""
    return "embed" in key or ".base_layer." in key


def described(lm: HFLM) -> dict[str, Any]:
    """Size and dtype of what was measured."""
    return {
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "dtype": str(next(lm.model.parameters()).dtype).removeprefix("torch."),
        "architecture": lm.config.architectures,
    }
