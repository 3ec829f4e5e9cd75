"""What a result says of a model: accuracy or loss, balancedness, memory, and what it was made with."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from steppe._command.provenance import made_with
from steppe.lora.balance import balancedness as of_pairs
from steppe.lora.pairs import find_pairs
from steppe.text.tokens import IGNORED

SCHEMA = 1
"""Version of the result's form."""


def accuracy(predicted: Any) -> dict[str, float]:
    """The share of right answers, as the Trainer asks for it."""
    return {"accuracy": float((_logits(predicted).argmax(-1) == predicted.label_ids).mean())}


def _logits(predicted: Any) -> Any:
    """Of a model that gives more than these, the first of what it gives."""
    return predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions


def metrics(trainer: Any, test: list[dict[str, Any]], language: bool) -> dict[str, float]:
    """Accuracy and loss of a classifier; loss per token and perplexity of a language model."""
    if language:
        loss = loss_per_token(trainer, test)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    return of_classes(trainer, test)


def of_classes(trainer: Any, test: list[dict[str, Any]]) -> dict[str, float]:
    """Accuracy and mean cross-entropy over the examples, each counted once.

    The Trainer's own mean counts the examples with which processes fill up the last batch, drops that batch with
    ``dataloader_drop_last``, and is of the smoothed loss with ``label_smoothing_factor``.
    """
    with _everything(trainer.args):
        predicted = trainer.predict(test)
    logits, labels = (torch.as_tensor(found) for found in (_logits(predicted), predicted.label_ids))
    return accuracy(predicted) | {"loss": float(cross_entropy(logits.double(), labels))}


_EVERYTHING = {"dataloader_drop_last": False, "prediction_loss_only": False}


@contextmanager
def _everything(arguments: Any) -> Iterator[None]:
    """The last batch counts too, however small, and predictions are kept: those two may be set for the training."""
    before = {name: getattr(arguments, name) for name in _EVERYTHING}
    vars(arguments).update(_EVERYTHING)
    try:
        yield
    finally:
        vars(arguments).update(before)


@torch.no_grad()
def loss_per_token(trainer: Any, test: list[dict[str, Any]]) -> float:
    """Mean over all tokens of all responses, not over batches; every process goes through all of them."""
    model, total, count = trainer.model.eval(), 0.0, 0
    for batch in DataLoader(test, batch_size=trainer.args.eval_batch_size, collate_fn=trainer.data_collator):  # type: ignore[arg-type]
        batch = trainer._prepare_inputs(batch)
        with trainer.compute_loss_context_manager():
            tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
            total, count = total + float(model(**batch).loss) * tokens, count + tokens
    return total / max(count, 1)


def balancedness(model: Any) -> dict[str, float]:
    """B = (||A||^2 - ||B||^2)/2 of every LoRA pair by its name; nothing where there are none."""
    try:
        pairs = find_pairs(model, None)
    except ValueError:
        return {}
    return dict(zip((pair.name for pair in pairs), of_pairs(pairs).tolist(), strict=True))


def memory() -> dict[str, Any]:
    """The most bytes that were in use: on the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "of": "GPU memory in tensors"}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "memory of the process"}


def provenance(device: Any) -> dict[str, Any]:
    """What the result was made with."""
    import peft
    import transformers

    name = "cpu" if device.type == "cpu" else str(device)  # several processes have a "cpu:0" each
    made = made_with(name) | {"schema": SCHEMA}
    return made | {"transformers": transformers.__version__, "peft": peft.__version__}
