"""Copies and pickles of model, optimizer and method together train on as the originals do."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import steppe
from steppe.methods import METHODS

Trio = tuple[nn.Module, torch.optim.Optimizer, Any]
X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def pickled(trio: Trio) -> Trio:
    buffer = io.BytesIO()
    torch.save(trio, buffer)
    buffer.seek(0)
    loaded: Trio = torch.load(buffer, weights_only=False)
    return loaded


WAYS: dict[str, Callable[[Trio], Trio]] = {"deepcopy": copy.deepcopy, "pickle": pickled}


def trained(trio: Trio, steps: int) -> list[bool]:
    model, optimizer, method = trio
    ascents = []
    for _ in range(steps):
        method.backward(lambda: nn.functional.cross_entropy(model(X), Y))
        optimizer.step()
        optimizer.zero_grad()
        ascents.append(method.last.ascended)
    return ascents


def weights(trio: Trio) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trio[0].parameters()])


def build(name: str) -> Trio:
    torch.manual_seed(0)
    if name in ("nbar", "obar"):
        model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, METHODS[name].recipe(model, optimizer, pairs={"0.weight": "1.weight"}, total_steps=20)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
    make = METHODS[name].optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    optimizer = make(model.parameters())
    return model, optimizer, METHODS[name].recipe(model, optimizer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["sam", "look_sam", "grst", "fsam", "wsam", "msam", "sl_sam", "nbar", "obar"])
def test_both_go_on_alike(name: str, way: str) -> None:
    original = build(name)
    trained(original, 3)
    other = WAYS[way](original)
    assert other[2].optimizer is other[1] and other[2].model is other[0] and other[2].step == 3
    for trio in (original, other):
        torch.manual_seed(5)
        trio_ascents = trained(trio, 6)
        assert trio[2].step == 9
        if trio is original:
            ascents = trio_ascents
    assert trio_ascents == ascents and torch.equal(weights(original), weights(other))


def test_a_copy_leaves_the_original_s_steps_alone() -> None:
    original = build("look_sam")
    other = copy.deepcopy(original)
    trained(other, 4)
    assert (original[2].step, other[2].step) == (0, 4)


def test_a_removed_bar_stays_removed() -> None:
    original = build("nbar")
    original[2].remove()
    other = copy.deepcopy(original)
    trained(other, 2)
    assert other[2].step == 0


def test_while_perturbed_a_copy_is_refused() -> None:
    model, optimizer, sharp = build("sam")
    model(X).square().mean().backward()
    sharp = steppe.SAM(model, optimizer, same_dropout=False)
    assert sharp.ascend()
    with pytest.raises(RuntimeError, match="cannot copy the object while the weights are perturbed"):
        copy.deepcopy(sharp)
    sharp.restore()
