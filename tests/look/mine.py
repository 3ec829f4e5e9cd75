"""What a user of `steppe look module:function` writes."""

from collections import OrderedDict
from typing import Any

import torch
from torch import nn


def subject() -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    batches = [(torch.randn(8, 5), torch.randint(3, (8,))) for _ in range(2)]
    base = {name: weight + 0.2 for name, weight in model.state_dict().items()}
    return model, lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), batches, base


def beside_another() -> tuple[Any, ...]:
    *found, base = subject()
    return *found, base | {"0.weight": torch.zeros(2, 5)}


def of_each() -> tuple[Any, ...]:
    model, _, batches, _ = subject()
    return model, lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"), batches


def loss_and_batches_changed() -> tuple[Any, ...]:
    model, loss_of, batches, _ = subject()
    return model, batches, loss_of


def adapters_of_its_own() -> tuple[Any, ...]:
    """Its names have "lora_" in them, and it holds no pair that is known for LoRA's."""
    model = nn.Sequential(OrderedDict(lora_A=nn.Linear(5, 2), lora_B=nn.Linear(2, 3)))
    return model, lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), subject()[2]


def of_biases() -> tuple[Any, ...]:
    """BitFit: vectors alone are trained."""
    model, loss_of, batches, _ = subject()
    for weight in model.parameters():
        weight.requires_grad_(weight.ndim < 2)
    return model, loss_of, batches


def only_a_model() -> nn.Module:
    return subject()[0]
