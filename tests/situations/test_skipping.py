"""A step known to skip asks nothing of the parameters: what it leaves out is found later, or refused as before."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import steppe

RHO, LR = 0.3, 0.1
X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)


def built(k: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    ascent = steppe.Ascent(rho=RHO)
    return model, optimizer, steppe.SharpnessAware(model, optimizer, ascent=ascent, schedule=steppe.Every(k))


def backward(model: nn.Module, sharp: steppe.SharpnessAware) -> None:
    """Always with a function of the same code, which is known from its second step on."""
    sharp.backward(lambda: model(X).square().mean())


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, sharp: steppe.SharpnessAware, count: int) -> None:
    for _ in range(count):
        model.zero_grad()
        backward(model, sharp)
        optimizer.step()


def gradient(model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(model(X).square().mean(), list(model.parameters())))


def test_a_layer_exchanged_meanwhile_is_perturbed_in_the_next_ascent():
    model, optimizer, sharp = built()
    stepped(model, optimizer, sharp, 2)
    model[2] = nn.Linear(4, 3).double()
    optimizer.param_groups[0]["params"][2:] = list(model[2].parameters())  # as many as before
    stepped(model, optimizer, sharp, 1)
    assert not sharp.last.ascended
    g = gradient(model)
    size = math.sqrt(sum(float(x.square().sum()) for x in g))
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, x in zip(model.parameters(), g, strict=True):
            p += RHO * x / size
    wanted = gradient(model)
    with torch.no_grad():
        for p, old in zip(model.parameters(), before, strict=True):
            p.copy_(old)
    stepped(model, optimizer, sharp, 1)
    assert sharp.last.ascended
    for p, x in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, x, rtol=1e-12, atol=1e-14)


def test_a_schedule_exchanged_meanwhile_holds_at_once():
    model, optimizer, sharp = built(k=4)
    stepped(model, optimizer, sharp, 3)
    assert not sharp.last.ascended
    sharp.schedule = steppe.Always()
    stepped(model, optimizer, sharp, 1)
    assert sharp.last.ascended and sharp.step == 4


def test_a_group_that_cannot_be_is_refused_at_once():
    model, optimizer, sharp = built()
    stepped(model, optimizer, sharp, 2)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(ValueError, match="that the model does not"):
        backward(model, sharp)


def test_a_new_loss_is_looked_at_there_too():
    model, optimizer, sharp = built()
    stepped(model, optimizer, sharp, 2)
    out = model(X)
    with pytest.raises(RuntimeError, match="computed before the function was called"):
        sharp.backward(lambda: out.square().sum())


def test_a_step_of_the_optimizer_inside_the_pass_is_refused():
    model, optimizer, sharp = built()
    stepped(model, optimizer, sharp, 2)
    model[0].weight.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="steps inside a backward"):
        backward(model, sharp)
    assert all(map(torch.equal, model.parameters(), before))


def test_a_strangers_step_is_told():
    model, _, _ = built()
    optimizer, other = (torch.optim.SGD(layer.parameters(), lr=LR) for layer in (model[0], model[2]))
    sharp = steppe.SharpnessAware(model, optimizer, schedule=steppe.Every(3))
    stepped(model, optimizer, sharp, 3)
    with pytest.warns(UserWarning, match="does not know it"):
        other.step()


@pytest.mark.parametrize("first", ["backward", "ascend"])
def test_an_abandoned_step_leaves_no_decision(first: str):
    model, optimizer, sharp = built()
    stepped(model, optimizer, sharp, 2)
    optimizer.zero_grad()
    if first == "backward":
        backward(model, sharp)
    else:
        model(X).square().mean().backward()
        assert not sharp.ascend()
    optimizer.zero_grad()
    sharp.schedule = steppe.Always()
    backward(model, sharp)
    assert sharp.last.ascended


def test_a_mark_is_lent_to_no_later_step():
    model, optimizer, sharp = built()
    stepped(model, optimizer, sharp, 2)
    sharp.mark()
    stepped(model, optimizer, sharp, 1)
    assert sharp._making.passes.mark is None
