"""Closures that begin with ``zero_grad``: what was in ``.grad`` is gone, as in a loop without the method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.problems import batches, grads, loss_of, net, same
from tests.situations.standins import MECHANISMS
from torch import Tensor, nn

import steppe
from steppe.methods import METHODS

STEPS = 6


def trained(name: str, inside: bool, set_to_none: bool) -> dict[str, Tensor]:
    """Gradients cleared in the function that computes the loss, or before it."""
    torch.manual_seed(0)
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    row = METHODS[name]
    sharp: Any = row.recipe(model, optimizer, **row.good[-1] if name == "aesam" else {})

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        if inside:
            optimizer.zero_grad(set_to_none)
        reduction = "none" if row.per_sample else "mean"
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction=reduction)

    for batch in batches(STEPS):
        if not inside:
            optimizer.zero_grad(set_to_none)
        sharp.backward(loss, batch)
        optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("name", MECHANISMS)
def test_it_is_the_loop_that_clears_before(name: str, set_to_none: bool) -> None:
    assert same(trained(name, True, set_to_none), trained(name, False, set_to_none))


@pytest.mark.parametrize("which", [0, 1])
def test_what_the_other_optimizer_has_is_still_added_to(which: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    parts = [model[0], model[2]]
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]
    sharp = steppe.SAM(model, optimizers, rho=0.1)
    first, second = batches(2)
    sharp.backward(loss_of(model), second)
    alone = grads(model)
    model.zero_grad()
    sharp.backward(loss_of(model), first)
    before = grads(model)

    def clearing(batch: tuple[Tensor, Tensor]) -> Tensor:
        optimizers[which].zero_grad()
        return loss_of(model)(batch)

    sharp.backward(clearing, second)
    for name, grad in grads(model).items():
        kept = before[name] if name.startswith("2." if which == 0 else "0.") else 0.0
        torch.testing.assert_close(grad, alone[name] + kept, rtol=0, atol=1e-15)


def test_a_parameter_that_the_loss_does_not_reach_has_none() -> None:
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.SAM(model, optimizer)
    buffer = torch.zeros(sum(p.numel() for p in model.rare.parameters()), dtype=torch.float64)
    for piece, param in zip(buffer.split([49, 7]), model.rare.parameters(), strict=True):
        param.grad = piece.view_as(param)  # slices of a flat buffer of the loop's own
    ((x, y),) = batches(1)

    def without_rare() -> Tensor:
        optimizer.zero_grad()
        return nn.functional.cross_entropy(model(x, rare=False), y)

    sharp.backward(without_rare)
    assert model.rare.weight.grad is None and model.last.weight.grad is not None


def test_an_error_leaves_what_was_there() -> None:
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.SAM(model, optimizer)
    sharp.backward(loss_of(model), *batches(1))
    before = grads(model)

    def fails() -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        sharp.backward(fails)
    assert all(torch.equal(g, before[n]) for n, g in grads(model).items() if g is not None)


def test_micro_batches_by_single_calls_are_still_added() -> None:
    model = net(dropout=0.0).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp, total = steppe.SAM(model, optimizer), dict[str, Tensor]()
    pieces = list(batches(3))
    for piece in pieces:
        sharp.backward(loss_of(model), piece)
        total = {n: total.get(n, 0.0) + g for n, g in grads(model).items() if g is not None}
        optimizer.zero_grad()
    for piece in pieces:
        sharp.backward(loss_of(model), piece)
    for name, grad in total.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=0, atol=1e-15)


def test_a_discriminator_that_the_closure_clears_is_cleared() -> None:
    ends = []
    for inside in (True, False):
        torch.manual_seed(0)
        model, judge = net(dropout=0.0), nn.Linear(3, 1).double()
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model, judge)]
        sharp = steppe.SAM(model, optimizers[0])

        def loss(batch: tuple[Tensor, Tensor], parts: Any = (model, judge, optimizers, inside)) -> Tensor:
            model, judge, optimizers, inside = parts
            for optimizer in optimizers if inside else ():
                optimizer.zero_grad()
            return judge(model(batch[0])).square().mean()

        for batch in batches(STEPS):
            for optimizer in optimizers if not inside else ():
                optimizer.zero_grad()
            sharp.backward(loss, batch)
            for optimizer in optimizers:
                optimizer.step()
        ends.append(dict(judge.state_dict()) | dict(model.state_dict()))
    assert same(*ends)
