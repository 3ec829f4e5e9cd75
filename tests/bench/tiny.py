"""Models as a user brings them."""

from typing import Any

import torch
from tests.problems import Adapted
from torch import Tensor, nn


def linear(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(torch.Size(shape).numel()), classes))


def problem(batch_size: int) -> tuple[nn.Module, Any, Any]:
    batch = {"x": torch.randn(batch_size, 6), "y": torch.randn(batch_size), "name": "tiny"}
    return nn.Linear(6, 1), batch, lambda model, b: (model(b["x"])[:, 0] - b["y"]).square().mean()


def lora(batch_size: int) -> tuple[nn.Module, Any, Any]:
    batch = {"x": torch.randn(batch_size, 6), "y": torch.randn(batch_size), "name": "tiny"}
    return Adapted(6, 1), batch, lambda model, b: (model(b["x"])[:, 0] - b["y"]).square().mean()


def wide(batch_size: int) -> tuple[nn.Module, Any, Any]:
    """So many weights beside so few numbers in between that the parameters' buffers are what memory is made of."""
    model = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 256))
    return model, (torch.randn(batch_size, 256),), lambda model, b: model(b[0]).square().mean()


def wrong(batch_size: int) -> tuple[int, int]:
    return 1, 2


def no_model(shape: tuple[int, ...], classes: int) -> Tensor:
    return torch.zeros(1)
