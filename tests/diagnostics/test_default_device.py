"""A default device that is not the CPU (``torch.set_default_device("cuda")``) changes no figure; here "meta" is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe import diagnostics

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
BATCH = (torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,)))


def loss_of(batch: Any) -> Tensor:
    assert torch.empty(0).device == torch.get_default_device()
    seen.append(torch.get_default_device().type)
    return nn.functional.cross_entropy(MODEL(batch[0]), batch[1])


seen: list[str] = []
LOOKS: dict[str, Callable[[], Any]] = {
    "curvature": lambda: diagnostics.curvature(MODEL, loss_of, [BATCH], steps=5, probes=9, runs=1),
    "lambda_max": lambda: diagnostics.lambda_max(MODEL, loss_of, [BATCH], steps=5),
    "m_sharpness": lambda: diagnostics.m_sharpness(MODEL, loss_of, [BATCH], [0.1], m=4, draws=2),
    "loss_plane": lambda: diagnostics.loss_plane(MODEL, loss_of, [BATCH], points=2),
    "find_rho": lambda: steppe.find_rho(
        MODEL, torch.optim.SGD(MODEL.parameters(), lr=0.1), loss_of, [BATCH], radii=[0.1], trial=4
    ),
}


@pytest.fixture
def elsewhere() -> Iterator[Callable[[], None]]:
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_is_the_same(look: str, elsewhere: Callable[[], None]) -> None:
    expected = LOOKS[look]()
    elsewhere()
    seen.clear()
    assert LOOKS[look]() == expected
    assert set(seen) == {"meta"}  # the loss makes its own tensors where it is used to
