"""``rho`` in an optimizer's groups may be a setting of its class (Adadelta's decay): then it is no radius."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.problems import same
from torch import nn
from torch.optim import Optimizer

import steppe

RHO = 0.3
Make = Callable[[list[nn.Parameter]], Any]


class Holding(Optimizer):
    """A wrapper that is stepped itself, with its own groups, as torch's ZeRO is."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.5})
        self.inner = torch.optim.Adadelta(params, lr=0.5)
        self.param_groups = [dict(group) for group in self.inner.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inner.step()


def adadelta(params: list[nn.Parameter]) -> Any:
    return torch.optim.Adadelta(params, lr=0.5)


def beside_sgd(params: list[nn.Parameter]) -> Any:
    last = {"params": params[3:], "rho": 0.7}
    return [torch.optim.Adadelta(params[:2], lr=0.5), torch.optim.SGD([{"params": params[2:3]}, last], lr=0.1)]


def displaced(make: Make, radii: list[float]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    sharp = steppe.SAM(model, make(list(model.parameters())), rho=RHO)
    model(torch.eye(3, dtype=torch.float64)).square().sum().backward()
    length = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    there = {n: p + r * p.grad / length for (n, p), r in zip(model.named_parameters(), radii, strict=True)}
    with sharp.perturbed():
        for name, param in model.named_parameters():
            torch.testing.assert_close(param, there[name], rtol=1e-12, atol=1e-14)
    assert same(before, dict(model.named_parameters()))


@pytest.mark.parametrize("make", [adadelta, Holding])
def test_it_is_no_radius(make: Make) -> None:
    displaced(make, [RHO] * 4)


def test_of_several_optimizers_the_others_keep_their_own() -> None:
    displaced(beside_sgd, [RHO, RHO, RHO, 0.7])


def test_a_value_that_no_radius_has_is_the_optimizer_s_own() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adadelta([{"params": model.parameters(), "rho": True}])
    steppe.SAM(model, optimizer)


def test_find_rho_may_search_for_one() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    batches = [torch.randn(4, 3) for _ in range(2)]
    optimizer = torch.optim.Adadelta(model.parameters())
    found = steppe.find_rho(model, optimizer, lambda x: model(x).square().mean(), batches, radii=(0.1,), trial=0)
    assert found.rho == 0.1
