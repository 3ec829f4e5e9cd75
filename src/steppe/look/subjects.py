"""The models that are looked at, with the loss that they were trained by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode, its mean loss of a batch, batches of its training examples, and what each counts."""

    name: str
    model: nn.Module
    loss_of: Callable[[Any], Tensor]
    batches: list[Any]
    weigh: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Subjects:
    """What is looked at, one model or base and method, and the base's weights for the plane (None: around the last)."""

    each: tuple[Subject, ...]
    base: Mapping[str, Tensor] | None
