"""Trainable parameters that the optimizer lacks change nothing of what the optimizer is given.

A head that is trained alone, without freezing the body: the same head as with the body frozen.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe.methods import METHODS

STEPS = 8
Loss = Callable[[], Tensor]
Built = tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]
# One method for each way to make a step from the whole batch and every tensor.
SINGLE = ("sam", "grst", "look_sam", "gsam", "wsam", "fsam", "aesam", "msam", "s2_sam")


def build(name: str, trainable: bool) -> Built:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3), nn.LayerNorm(3)).double()
    model[:3].requires_grad_(trainable)
    row = METHODS[name]
    make = row.optimizer or (lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9))
    optimizer = make([*model[3].parameters(), *model[4].parameters()])
    more = {"total_steps": STEPS} if name in ("aesam", "late_sam") else {}
    more |= {"start": 3} if name == "late_sam" else {}
    return model, optimizer, row.recipe(model, optimizer, rho=0.1, **more)


def head(name: str, trainable: bool, step: Callable[..., None]) -> Tensor:
    """The head after some steps."""
    model, *_ = built = build(name, trainable)
    draw = torch.Generator().manual_seed(1)
    for t in range(STEPS):
        x = torch.randn(8, 4, generator=draw, dtype=torch.float64)
        y = torch.randint(3, (8,), generator=draw)
        step(t, built, lambda x=x, y=y: nn.functional.cross_entropy(model(x), y))
    return torch.cat([p.detach().flatten() for p in model[3:].parameters()])


def plain(t: int, built: Built, loss: Loss) -> None:
    _, optimizer, sharp = built
    sharp.backward(loss)
    optimizer.step()
    optimizer.zero_grad()


def clipped(t: int, built: Built, loss: Loss) -> None:
    _, optimizer, sharp = built
    sharp.backward(loss)
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 0.05)
    optimizer.step()
    optimizer.zero_grad()


def given_up(t: int, built: Built, loss: Loss) -> None:
    _, optimizer, sharp = built
    sharp.backward(loss)
    if t != 2:
        optimizer.step()
    optimizer.zero_grad()


def in_phases(t: int, built: Built, loss: Loss) -> None:
    _, optimizer, sharp = built
    loss().backward()
    if sharp.ascend():
        loss().backward()
        sharp.restore()
    optimizer.step()
    optimizer.zero_grad()


STEPPED = [(name, plain) for name in SINGLE]
STEPPED += [(name, step) for name in ("look_sam", "wsam", "s2_sam", "fsam") for step in (clipped, given_up)]
STEPPED += [(name, in_phases) for name in ("sam", "look_sam", "wsam", "fsam")]


@pytest.mark.parametrize(("name", "step"), STEPPED, ids=lambda x: getattr(x, "__name__", x))
def test_the_head_is_the_same(name: str, step: Callable[..., None]) -> None:
    assert torch.equal(head(name, True, step), head(name, False, step))


@pytest.mark.parametrize("name", ["wsam", "gsam", "look_sam"])
def test_under_a_scaler_that_unscales_the_optimizers_gradients_alone(name: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def scaled(t: int, built: Built, loss: Loss) -> None:
        _, optimizer, sharp = built
        sharp.backward(loss, backward=lambda value: scaler.scale(value).backward())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    torch.testing.assert_close(head(name, True, scaled), head(name, False, plain), rtol=1e-9, atol=1e-12)


def test_what_the_others_get_is_the_latest_pass_s() -> None:
    model, optimizer, sharp = build("look_sam", True)
    x = torch.randn(8, 4, dtype=torch.float64)
    for t in range(3):
        model.zero_grad()
        sharp.backward(lambda: model(x).square().mean())
        at_the_weights = torch.autograd.grad(model(x).square().mean(), model[0].weight)[0]
        assert sharp.last.ascended is (t == 0)
        assert torch.equal(model[0].weight.grad, at_the_weights) is (t > 0)
        optimizer.step()
