"""Pretrained sequence classifiers as models of a study: tokens in, one score per class out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from functools import lru_cache

from torch import Tensor, nn

from steppe._command.saved import weights
from steppe.text.models import Lora, classifier

PREFIX = "hf:"
"""What the names of these models begin with: `hf:FOLDER` or `hf:ID`."""


class Classifier(nn.Module):
    """A Hugging Face sequence classifier that takes a batch of tokens as one argument."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        """Scores (examples, classes) of tokens (examples, tokens)."""
        scores: Tensor = self.inner(**x).logits
        return scores


def fingerprint(model: str) -> str:
    """A hash of the weights that a model by name begins with; empty for others, and for those of the hub."""
    return weights(model.removeprefix(PREFIX)) if model.startswith(PREFIX) else ""


def build(path: str, classes: int, lora: Lora | None, seed: int) -> nn.Module:
    """A model ready to train; head and adapters are drawn from `seed`, never from the global generator.

    Beside the adapters the head is trained too; without any, every weight.
    """
    return Classifier(copy.deepcopy(_pretrained(path, classes, lora, seed))).train()


@lru_cache(maxsize=2)
def _pretrained(path: str, classes: int, lora: Lora | None, seed: int) -> nn.Module:
    """Read once for the runs of one seed in a process; nobody trains this copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between transformers and peft, nothing a user could change
        return classifier(path, classes, lora, seed)[0]
