"""A loss that writes its batch in place, or takes parts out of it, is looked at as one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe import diagnostics

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
X, Y = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))
LOOKS: dict[str, Callable[..., Any]] = {
    "lambda_max": lambda *of: diagnostics.lambda_max(MODEL, *of, steps=5),
    "m_sharpness": lambda *of: diagnostics.m_sharpness(MODEL, *of, [0.1], m=4, draws=1),
    "loss_plane": lambda *of: diagnostics.loss_plane(MODEL, *of, points=2),
    "find_rho": lambda *of: steppe.find_rho(
        MODEL, torch.optim.SGD(MODEL.parameters(), lr=0.1), *of, radii=[0.1], trial=4
    ),
}


def apart(batch: Any) -> Tensor:
    return nn.functional.cross_entropy(MODEL((batch["x"] - 1) / 3), batch["y"])


def changing(batch: Any) -> Tensor:
    labels = batch.pop("y")
    return nn.functional.cross_entropy(MODEL(batch["x"].sub_(1).div_(3)), labels)


@pytest.mark.parametrize("look", LOOKS)
def test_every_pass_is_of_the_same_batch(look: str) -> None:
    batches = [{"x": X.clone(), "y": Y}, {"x": X.neg(), "y": Y}]
    assert LOOKS[look](changing, batches) == LOOKS[look](apart, batches)
    assert torch.equal(batches[0]["x"], X) and "y" in batches[1]
