"""Losses that write their inputs in place: every pass begins from the same values, and what is written moves once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.problems import batches, net, same
from tests.situations.standins import MECHANISMS
from torch import Tensor, nn
from torch.func import functional_call

import steppe
from steppe import methods

STEPS = 6
Batch = tuple[Tensor, Tensor]
Loss = Callable[[Batch], Tensor]


def build(name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    if name == "a look":
        return steppe.SAM(model, optimizer, rho=0.1, samples=2)
    row = methods.get(name)
    return row.recipe(model, optimizer, **row.good[-1] if name == "aesam" else {})


def trained(name: str, loss_with: Callable[[nn.Module, str], Loss], closure: bool = False) -> dict[str, Tensor]:
    """Weights after some steps on fresh copies of the batches."""
    torch.manual_seed(0)
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sharp = build(name, model, optimizer)
    loss = loss_with(model, "none" if name in ("esam", "k_sam") else "mean")
    for batch in batches(STEPS):
        sharp.backward((lambda b=batch: loss(b)) if closure else loss, *(() if closure else (batch,)))
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


def apart(model: nn.Module, reduction: str) -> Loss:
    return lambda batch: nn.functional.cross_entropy(model((batch[0] - 0.5) / 2.0), batch[1], reduction=reduction)


def in_place(model: nn.Module, reduction: str) -> Loss:
    return lambda batch: nn.functional.cross_entropy(model(batch[0].sub_(0.5).div_(2.0)), batch[1], reduction=reduction)


@pytest.mark.parametrize("name", [*MECHANISMS, "a look", "k_sam"])
def test_a_batch_that_the_loss_standardises_in_place(name: str) -> None:
    assert same(trained(name, in_place), trained(name, apart))


@pytest.mark.parametrize("name", ["sam", "gsam", "look_sam"])
def test_the_same_of_a_batch_that_a_closure_holds(name: str) -> None:
    assert same(trained(name, in_place, closure=True), trained(name, apart, closure=True))


def test_dropout_in_place_on_the_input() -> None:
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Dropout(0.3, inplace=inplace), nn.Linear(5, 3)).double()
        sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3)
        for x, y in batches(STEPS):
            sharp.backward(lambda x=x, y=y, m=model: nn.functional.cross_entropy(m(x), y))
            sharp.optimizer.step()
            sharp.optimizer.zero_grad()
        found.append(dict(model.state_dict()))
    assert same(*found)


@pytest.mark.parametrize("name", ["sam", "gsam", "look_sam"])
def test_a_running_sum_in_the_loss_counts_every_step_once(name: str) -> None:
    """By the loss at w, as a loop without the method counts it."""
    torch.manual_seed(0)
    model, total, losses = net(dropout=0.0), torch.zeros((), dtype=torch.float64), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sharp = build(name, model, optimizer)

    def loss(batch: Batch) -> Tensor:
        found = nn.functional.cross_entropy(model(batch[0]), batch[1])
        total.add_(found.detach())
        return found

    for batch in batches(STEPS):
        losses.append(sharp.backward(loss, batch))
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(total, torch.stack(losses).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["sam", "gsam", "look_sam"])
@pytest.mark.parametrize("as_nan", [False, True])
def test_running_statistics_in_a_dict_of_one_s_own_move_once(name: str, as_nan: bool) -> None:
    """As those of ``functional_call`` do: no count of versions tells that batch norm has written them."""

    def trained(apart: bool) -> dict[str, Tensor]:
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
        held = {k: b.clone() for k, b in model.named_buffers()}
        optimizer, fixed = torch.optim.SGD(model.parameters(), lr=0.1), torch.tensor(float("nan")).expand(3)
        sharp = build(name, model, optimizer)

        def loss(batch: Batch) -> Tensor:
            x, y = batch
            out = functional_call(model, (dict(model.named_parameters()), held), (x,)) if apart else model(x)
            return nn.functional.cross_entropy(out, y) + (0 if not as_nan else fixed.nan_to_num().sum())

        for batch in batches(STEPS):
            sharp.backward(loss, batch)
            optimizer.step()
            optimizer.zero_grad()
        return held if apart else dict(model.named_buffers())

    found = []
    for apart in (False, True):
        torch.manual_seed(0)
        found.append(trained(apart))
    assert same(*found)


def test_a_function_that_begins_to_write_late_is_told_once_and_then_right() -> None:
    torch.manual_seed(0)
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sharp, seen = steppe.SAM(model, optimizer, rho=0.3), []

    def loss(batch: Batch) -> Tensor:
        seen.append(float(batch[0].sum()))
        x = batch[0].mul_(2.0) if len(seen) > 10 else batch[0]
        return nn.functional.cross_entropy(model(x), batch[1])

    for step, batch in enumerate(batches(9)):
        if step == 5:
            with pytest.warns(UserWarning, match="wrote its input in place for the first time"):
                sharp.backward(loss, batch)
        else:
            sharp.backward(loss, batch)
        optimizer.step()
        optimizer.zero_grad()
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    assert [a == b for a, b in pairs] == [step != 5 for step in range(9)]


def test_missing_values_are_not_taken_for_written() -> None:
    model = nn.Linear(5, 3).double()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.full((4, 5), float("nan"), dtype=torch.float64)
    sharp.backward(lambda: model(x.nan_to_num()).square().mean())
    assert not sharp._making.passes.inputs.silent


def test_nothing_is_copied_once_it_is_known_that_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Tensor] = []
    monkeypatch.setattr("steppe._inputs._copy", lambda tensor: (copied.append(tensor), tensor.clone())[1])
    torch.manual_seed(0)
    model = net(dropout=0.0)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.05))
    counts = []
    for batch in batches(STEPS):
        sharp.backward(lambda b: nn.functional.cross_entropy(model(b[0]), b[1]), batch)
        counts.append(len(copied))
    assert counts == [2, 4, 6, 6, 6, 6]
