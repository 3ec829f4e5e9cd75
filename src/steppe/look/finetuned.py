"""What a fine-tuning saved, with the loss on its training examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steppe._command.files import read_json
from steppe.finetune import data
from steppe.finetune.folder import RESULT
from steppe.finetune.spec import Spec
from steppe.look.request import Request
from steppe.look.subjects import Subject, Subjects
from steppe.text.models import trained
from steppe.text.tokens import Collator, counting


def of_run(folder: Path, request: Request) -> Subjects:
    """The fine-tuned model, in float32, alone."""
    result = read_json(folder / RESULT)
    if not isinstance(result, dict) or result.get("kind") != "finetune":
        raise ValueError(f"{folder} holds a fine-tuning that is not finished; go on with steppe finetune --resume")
    settings = Spec(**result["settings"])
    found = data.examples(settings)
    model, tokenizer = trained(str(folder), None if settings.language else result["data"]["classes"])
    examples = data.tokens(settings, found, model, tokenizer).train
    batches = _batches(examples, tokenizer, settings, request)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.float().to(device).eval()
    loss_of = _loss_of(model, device, float(settings.training.get("label_smoothing_factor", 0.0)), settings.language)
    weigh = counting if settings.language else None  # the loss is one per token: not every batch has as many
    subject = Subject(str(result["method"]["label"]), model, loss_of, batches, weigh)
    return Subjects((subject,), None)


def _batches(examples: list[Any], tokenizer: Any, settings: Spec, request: Request) -> list[Any]:
    """Some of the examples, in a random order (a file may have one class after the other), in batches of one size."""
    from transformers import DataCollatorWithPadding

    count = min(len(examples), request.examples)
    size = min(request.batch, count)
    collate: Any = Collator(tokenizer.pad_token_id) if settings.language else DataCollatorWithPadding(tokenizer)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[: count - count % size]
    return [collate([examples[i] for i in part.tolist()]) for part in order.split(size)]


def _loss_of(model: Any, device: str, smoothing: float, shifted: bool) -> Any:
    """The loss that the Trainer trained by: the model's own, or that of smoothed labels."""
    from transformers.trainer_pt_utils import LabelSmoother

    smoother: Any = LabelSmoother(epsilon=smoothing)

    def loss_of(batch: Any) -> Tensor:
        inputs = {name: part.to(device) for name, part in batch.items()}
        if not smoothing:
            return model(**inputs).loss
        labels = inputs.pop("labels")
        return smoother(model(**inputs), labels, shift_labels=shifted)

    return loss_of
