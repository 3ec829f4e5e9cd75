"""What was computed from w must not serve w + eps, nor the other way round."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import steppe

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Squared(nn.Module):
    def forward(self, w):
        return w * w + 0.1


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    parametrize.register_parametrization(model[0], "weight", Squared())
    return model


def loss(model, x=X):
    return (model(x) - 1).square().mean()


def by_hand(model, x=X, rho=0.3, look=None, gamma=1.0):
    """(1 - gamma) g + gamma g~ with nothing cached; the ascent is along the gradient on ``look``."""
    here, ahead, there = (copy.deepcopy(model) for _ in range(3))
    loss(here, x).backward()
    loss(ahead, x if look is None else look).backward()
    length = torch.sqrt(sum((p.grad**2).sum() for p in ahead.parameters()))
    with torch.no_grad():
        for p, q in zip(there.parameters(), ahead.parameters(), strict=True):
            p += rho * q.grad / length
    loss(there, x).backward()
    pairs = zip(here.parameters(), there.parameters(), strict=True)
    return [(1 - gamma) * p.grad + gamma * q.grad for p, q in pairs]


@pytest.mark.parametrize("way", ["backward", "phases", "look", "apart"])
def test_a_cache_of_parametrised_weights_around_a_step(way):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    more = {"look": steppe.Look(2)} if way in ("look", "apart") else {}
    gamma = 0.5 if way == "apart" else 1.0
    sharp = steppe.SharpnessAware(model, optimizer, ascent=steppe.Ascent(rho=0.3), combine=steppe.Mix(gamma), **more)
    for _ in range(3):
        wanted = by_hand(model, look=X[:2] if more else None, gamma=gamma)
        with parametrize.cached():
            if way == "backward":
                sharp.backward(lambda: loss(model))
            elif more:
                sharp.backward(lambda x: loss(model, x), X)
            else:
                sharp.mark()
                loss(model).backward()
                assert sharp.ascend()
                loss(model).backward()
                sharp.restore()
            after = model[0].weight  # with the weights back, made of them anew
        assert torch.equal(after, model[0].parametrizations.weight.original ** 2 + 0.1)
        assert max(float((p.grad - g).abs().max()) for p, g in zip(model.parameters(), wanted, strict=True)) <= 1e-10
        optimizer.step()
        optimizer.zero_grad()


def test_a_look_through_perturbed_within_a_cache():
    model = network()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3)
    loss(model).backward()
    with parametrize.cached(), torch.no_grad():
        here = loss(model)
        with sharp.perturbed():
            there = loss(model)
        again = loss(model)
    assert again == here and there > here


class Remembering(nn.Module):
    """Keeps what it made of its weight in an attribute, and makes it anew in training only where there is none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w, self.made = nn.Parameter(torch.randn(4, 1, dtype=torch.float64)), None

    def forward(self, x):
        if self.made is None:
            self.made = self.w.square()
        return x @ self.made


def test_a_cache_of_ones_own_is_made_in_each_pass():
    model = Remembering()
    wanted = by_hand(model)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3)
    sharp.backward(lambda: loss(model))
    assert max(float((p.grad - g).abs().max()) for p, g in zip(model.parameters(), wanted, strict=True)) <= 1e-10
    assert torch.equal(model.made, model.w.square())


def test_an_autocast_around_a_step_casts_anew():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=3.0)
    seen = []
    with torch.autocast("cpu", torch.bfloat16):

        def closure():
            out = model(X.float())
            seen.append(out.detach().clone())
            return out.float().square().mean()

        sharp.backward(closure)
        assert torch.equal(model(X.float()), seen[0]) and not torch.equal(seen[0], seen[1])
