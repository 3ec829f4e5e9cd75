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


def whole_output(batch_size: int) -> tuple[nn.Module, Any, Any]:
    return nn.Linear(6, 1), torch.randn(batch_size, 6), lambda model, b: {"loss": model(b).square().mean()}


def normed(batch_size: int) -> tuple[nn.Module, Any, Any]:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), torch.randn(batch_size, 6), lambda m, b: m(b).sum()


def wrong(batch_size: int) -> tuple[int, int]:
    return 1, 2


def no_model(shape: tuple[int, ...], classes: int) -> Tensor:
    return torch.zeros(1)


class Tied(nn.Module):
    """Two layers of one weight, a buffer that is in no checkpoint, and a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.zeros(32, 64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.table[0]

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def tied(batch_size: int) -> tuple[nn.Module, Any, Any]:
    return Tied(), (torch.randn(batch_size, 64),), lambda model, b: model(b[0]).square().mean()
