"""Models of TorchScript, whole or in part, are trained as what they were made of."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from tests.problems import same
from tests.situations.standins import MECHANISMS
from torch import nn

import steppe
from steppe import diagnostics, methods

DATA = torch.Generator().manual_seed(0)
BATCHES = [(torch.randn(8, 3, generator=DATA).double(), torch.arange(8) % 4) for _ in range(4)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)).double()


def scripted(model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(model)


def in_part(model: nn.Module) -> nn.Module:
    return nn.Sequential(scripted(model[:2]), model[2:])  # type: ignore[index]


def trained(name: str, model: nn.Module) -> list[torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    row = methods.get(name)
    sharp = row.recipe(model, optimizer, **row.good[-1])
    each = "none" if row.per_sample else "mean"
    for batch in BATCHES:
        sharp.backward(lambda b: nn.functional.cross_entropy(model(b[0]), b[1], reduction=each), batch)
        optimizer.step()
        optimizer.zero_grad()
    sharp.load_state_dict(sharp.state_dict())
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("made", [scripted, in_part])
@pytest.mark.parametrize("name", MECHANISMS)
def test_it_trains_as_what_it_was_made_of(name: str, made: Any) -> None:
    found, expected = trained(name, made(network())), trained(name, network())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_an_error_leaves_its_weights() -> None:
    model = scripted(network())
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1)
    before, calls = copy.deepcopy(dict(model.named_parameters())), iter((False, True))

    def loss(batch: Any) -> torch.Tensor:
        found = nn.functional.cross_entropy(model(batch[0]), batch[1])
        if next(calls):
            raise ArithmeticError
        return found

    with warnings.catch_warnings(), pytest.raises(ArithmeticError):
        warnings.simplefilter("ignore")
        sharp.backward(loss, BATCHES[0])
    assert same(dict(model.named_parameters()), before)


def test_it_is_looked_at_as_what_it_was_made_of() -> None:
    found = []
    for model in (network(), scripted(network())):
        loss_of = lambda b, m=model: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
        rise = diagnostics.m_sharpness(model, loss_of, BATCHES, [0.1], draws=1).rises[0]
        rho = steppe.find_rho(
            model, torch.optim.SGD(model.parameters(), lr=0.1), loss_of, BATCHES, radii=[0.1], trial=2
        )
        found.append([rise.worst, rise.average, rho.curve[0].cosine, rho.curve[0].rise])
    torch.testing.assert_close(*found, rtol=1e-9, atol=0)
