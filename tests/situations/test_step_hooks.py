"""Hooks of the optimizer's step that others add, older than the method and newer: clipping ahead, averages behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tests.problems import loss_of, net
from torch import Tensor, nn

import steppe

LIMIT = 0.02
REMEMBERING: dict[str, Callable[..., steppe.SharpnessAware]] = {
    "wsam": steppe.WSAM,
    "s2_sam": steppe.S2SAM,
    "arwp": partial(steppe.ARWP, rho=0.1, eta=1.0),
    "msam": partial(steppe.MSAM, rho=0.1, decay=0.9),
}


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 8, 5, generator=draw, dtype=torch.float64), torch.randint(0, 3, (5, 8), generator=draw)
    return list(zip(x, y, strict=True))


def trained(recipe: Callable[..., steppe.SharpnessAware], clips: str) -> list[Tensor]:
    """The weights after some steps, clipped in the loop, or by a hook that is older or newer than the method."""
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), LIMIT)

    if clips == "older":
        optimizer.register_step_pre_hook(clip)
    sharp = recipe(model, optimizer)
    if clips == "newer":
        optimizer.register_step_pre_hook(clip)
    for batch in batches():
        sharp.backward(loss_of(model), batch)
        if clips == "loop":
            clip()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("method", REMEMBERING)
def test_clipping_in_a_hook_is_clipping_in_the_loop(method: str) -> None:
    """What is remembered of a gradient, and a correction beside it, are of what the step takes."""
    expected = trained(REMEMBERING[method], "loop")
    assert all(map(torch.equal, trained(REMEMBERING[method], "older"), expected))
    assert all(map(torch.equal, trained(REMEMBERING[method], "newer"), expected))


@pytest.mark.parametrize("older", [True, False])
def test_a_hook_behind_the_step_sees_all_of_it(older: bool) -> None:
    """WSAM's correction is a part of the step: an average or a clamp in a hook comes after it."""
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[Tensor] = []

    def note(*_: Any) -> None:
        seen.extend(p.detach().clone() for p in model.parameters())

    if older:
        optimizer.register_step_post_hook(note)
    sharp = steppe.WSAM(model, optimizer)
    if not older:
        optimizer.register_step_post_hook(note)
    sharp.backward(loss_of(model), batches()[0])
    optimizer.step()
    assert all(map(torch.equal, seen, model.parameters()))
