"""What a fine-tuning saved, with the loss on its training examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steppe._command.files import read_json
from steppe._command.saved import base_and_adapter
from steppe.finetune import data
from steppe.finetune.folder import RESULT
from steppe.finetune.spec import Spec
from steppe.look.request import Request
from steppe.look.subjects import Subject, Subjects
from steppe.text.adapters import with_adapter
from steppe.text.models import causal, classifier
from steppe.text.tokens import Collator


def of_run(folder: Path, request: Request) -> Subjects:
    """The fine-tuned model, in float32, alone."""
    result = read_json(folder / RESULT)
    if not isinstance(result, dict) or result.get("kind") != "finetune":
        raise ValueError(f"{folder} holds a fine-tuning that is not finished; go on with steppe finetune --resume")
    settings = Spec(**result["settings"])
    found = data.examples(settings)
    model, tokenizer = _model(str(folder), settings, result["data"]["classes"])
    examples = data.tokens(settings, found, model, tokenizer).train
    batches = _batches(examples, tokenizer, settings, request)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.float().to(device).eval()
    subject = Subject(str(result["method"]["label"]), model, _loss_of(model, device), batches)
    return Subjects((subject,), None)


def _model(folder: str, settings: Spec, names: list[str]) -> tuple[nn.Module, Any]:
    place, adapter = base_and_adapter(folder)
    made: tuple[Any, Any] = (
        causal(place, None, 0, frozen=adapter is not None) if settings.language else classifier(place, names, None, 0)
    )
    if adapter is None:
        return made
    return with_adapter(made[0], adapter, classify=not settings.language), made[1]


def _batches(examples: list[Any], tokenizer: Any, settings: Spec, request: Request) -> list[Any]:
    """The first examples in batches of one size, padded as in training."""
    from transformers import DataCollatorWithPadding

    count = min(len(examples), request.examples)
    size = min(request.batch, count)
    collate: Any = Collator(tokenizer.pad_token_id) if settings.language else DataCollatorWithPadding(tokenizer)
    return [collate(examples[i : i + size]) for i in range(0, count - count % size, size)]


def _loss_of(model: Any, device: str) -> Any:
    def loss_of(batch: Any) -> Tensor:
        return model(**{name: part.to(device) for name, part in batch.items()}).loss

    return loss_of
