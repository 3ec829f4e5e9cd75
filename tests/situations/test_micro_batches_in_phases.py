"""Micro-batches one after the other where the host runs the passes: each put aside, and perturbed by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from tests.problems import batches, loss_of, net
from torch import Tensor, nn

import steppe

RECIPES: dict[str, Callable[..., steppe.SharpnessAware]] = {
    "sam": steppe.SAM,
    "asam": steppe.ASAM,
    "grst": steppe.GRST,
    "gsam": steppe.GSAM,
    "look_sam": partial(steppe.LookSAM, k=2),
    "fsam": steppe.FSAM,
    "aesam": partial(steppe.AESAM, total_steps=10),
}


def run(recipe: Callable[..., steppe.SharpnessAware], phases: bool) -> Iterator[list[Tensor]]:
    """The weights after each step of three micro-batches, the last step of two."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sharp, todo = recipe(model, optimizer), list(batches(11))
    for first in range(0, 11, 3):
        for t, batch in enumerate(todo[first : first + 3]):
            torch.manual_seed(first + t)
            if phases:
                in_phases(sharp, model, loss_of(model), batch, t > 0)
            else:
                sharp.backward(loss_of(model), batch)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        yield [p.detach().clone() for p in model.parameters()]


def in_phases(
    sharp: steppe.SharpnessAware,
    model: nn.Module,
    loss_of_batch: Callable[[tuple[Tensor, Tensor]], Tensor],
    batch: tuple[Tensor, Tensor],
    later: bool,
) -> None:
    before = [(p, p.grad) for p in model.parameters()]
    model.zero_grad()
    sharp.mark()
    loss_of_batch(batch).backward()
    if sharp.ascend(same_step=later):
        loss_of_batch(batch).backward()
        sharp.restore()
    for p, grad in before:
        if grad is not None:
            p.grad = grad if p.grad is None else p.grad + grad


@pytest.mark.parametrize("name", RECIPES)
def test_they_are_as_those_of_backward(name: str) -> None:
    for here, there in zip(run(RECIPES[name], True), run(RECIPES[name], False), strict=True):
        assert all(float((a - b).abs().max()) <= 1e-12 for a, b in zip(here, there, strict=True))


def test_a_correction_whose_gradient_was_put_aside_is_refused() -> None:
    """Its measure is the gradient that the step takes, of which nobody could say that it was clipped or added to."""
    with pytest.raises(RuntimeError, match="correction stays in proportion .* put aside; expected backward"):
        list(run(steppe.WSAM, True))
