"""What a result says of a model: accuracy or loss, balancedness, memory, and what it was made with."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from steppe._command.provenance import made_with
from steppe.lora.balance import balancedness as of_pairs
from steppe.lora.pairs import find_pairs
from steppe.text.tokens import counting

SCHEMA = 1
"""Version of the result's form."""

Tell = Callable[[int, int], None]
"""Told how many batches are done, of how many."""


def answered(predicted: Any) -> dict[str, float]:
    """The share of right answers and the mean cross-entropy, as the Trainer asks for them.

    This "loss" stands in the place of its own, which is that of smoothed labels with ``label_smoothing_factor``, counts
    the examples with which processes fill up the last batch, and leaves out batches that are not finite.
    """
    logits, labels = (torch.as_tensor(found) for found in (_logits(predicted), predicted.label_ids))
    right = float((logits.argmax(-1) == labels).double().mean())
    return {"accuracy": right, "loss": float(cross_entropy(logits.double(), labels))}


def _logits(predicted: Any) -> Any:
    """Of a model that gives more than these, the first of what it gives."""
    return predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions


class Looking:
    """Stands before a Trainer: what it sees in between, by which the best checkpoint is chosen, is the result's figure.

    The Trainer's own loss of a language model is a mean over batches, however few tokens one has.
    """

    args: Any
    compute_metrics: Any

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's, of every example."""
        host: Any = super()
        with _everything(self.args):
            found: dict[str, float] = host.evaluate(*args, **kwargs)
        return found

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The Trainer's, or of a language model the loss per token."""
        if self.compute_metrics is None:
            found = {f"{metric_key_prefix}_loss": loss_per_token(self, dataloader.dataset)}
            return EvalLoopOutput(None, None, found, len(dataloader.dataset))  # type: ignore[arg-type]
        host: Any = super()
        return host.evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)


def metrics(
    trainer: Any, test: list[dict[str, Any]], language: bool, tell: Tell = lambda done, total: None
) -> tuple[dict[str, float], list[int] | None]:
    """Accuracy and loss of a classifier, and its answers; loss per token and perplexity of a language model.

    Args:
        trainer: with the model.
        test: examples as tokens.
        language: whether it is a language model.
        tell: how many batches are done, of how many; the Trainer's own callbacks are told where it predicts.
    """
    if language:
        loss = loss_per_token(trainer, test, tell)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}, None
    return of_classes(trainer, test)


def of_classes(trainer: Any, test: list[dict[str, Any]]) -> tuple[dict[str, float], list[int]]:
    """Accuracy and mean cross-entropy over the examples, each counted once, and the answers."""
    with _everything(trainer.args):
        predicted = trainer.predict(test)
    return answered(predicted), _logits(predicted).argmax(-1).tolist()


def per_class(labels: Sequence[int], answers: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class: its name, how many examples, and precision, recall and F1 (0 where nothing is to divide by)."""
    from sklearn.metrics import precision_recall_fscore_support

    every = range(len(names))
    found = precision_recall_fscore_support(labels, answers, labels=list(every), zero_division=0)
    precision, recall, f1, counts = (each.tolist() for each in found)
    return [
        {"class": names[i], "examples": int(counts[i]), "precision": precision[i], "recall": recall[i], "f1": f1[i]}
        for i in every
    ]


def majority(train: Sequence[int], test: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """The class with most training examples, and the test accuracy of always answering it."""
    most = max(range(len(names)), key=list(train).count)
    return {"class": names[most], "accuracy": list(test).count(most) / len(test)}


def at_chance(accuracy: float, guess: float, examples: int) -> bool:
    """Whether an accuracy is within two standard errors above that of always giving one answer."""
    return accuracy <= guess + 2 * math.sqrt(guess * (1 - guess) / examples)


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
def loss_per_token(trainer: Any, test: list[dict[str, Any]], tell: Tell = lambda done, total: None) -> float:
    """Mean over all tokens of all responses, not over batches; every process goes through all of them."""
    model, total, count = trainer.model.eval(), 0.0, 0
    size = trainer.args.eval_batch_size
    loader: DataLoader[Any] = DataLoader(test, batch_size=size, collate_fn=trainer.data_collator)  # type: ignore[arg-type]
    for done, batch in enumerate(loader, 1):
        batch = trainer._prepare_inputs(batch)
        with trainer.compute_loss_context_manager():
            tokens = counting(batch)
            total, count = total + float(model(**batch).loss) * tokens, count + tokens
        tell(done, len(loader))
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
