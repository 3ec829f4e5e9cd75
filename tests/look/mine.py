"""What a user of `steppe look module:function` writes."""

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


def only_a_model() -> nn.Module:
    return subject()[0]
