"""The number in ``group["lr"]`` is not always the rate: what reads it says so by name, at construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import reference
from tests.situations.standins import STEPS, Lookahead, gap
from torch import nn
from torch.optim import Optimizer

import steppe
from steppe.curves import FollowLR

Make = Callable[[nn.Module, Any], Any]
PAIRS = {"low.a": "low.b"}
READERS: dict[str, Make] = {
    "WSAM": steppe.WSAM,
    "LookSAM with WSAM's refresh": lambda m, o: steppe.SharpnessAware(
        m, o, combine=steppe.Reuse(refresh=steppe.Decoupled(0.5)), schedule=steppe.Every(2)
    ),
    "FollowLR": lambda m, o: steppe.GSAM(m, o, rho=FollowLR(0.1, 0.01, 1e-2)),
    "BAR": lambda m, o: steppe.BAR(m, o, total_steps=9, pairs=PAIRS),
}


def relative(model: nn.Module) -> Optimizer:
    transformers = pytest.importorskip("transformers")
    return transformers.Adafactor(model.parameters(), lr=None, relative_step=True, warmup_init=True)


def lost(model: nn.Module) -> Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    del optimizer.param_groups[0]["lr"]
    return optimizer


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("base", [relative, lost, lambda m: Lookahead(relative(m)), lambda m: [relative(m)]])
def test_no_rate_is_refused_by_whoever_reads_it(base: Callable[[nn.Module], Any], name: str) -> None:
    model = reference.MLP().module()
    with pytest.raises(ValueError, match=r"(Adafactor|SGD) has lr=None.*expected") as error:
        READERS[name](model, base(model))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", [steppe.SAM, steppe.LookSAM, steppe.FSAM, steppe.S2SAM, steppe.GSAM])
def test_no_rate_is_no_matter_to_the_others(recipe: Make) -> None:
    """(The by-hand loop of SAM; the others train.)"""
    model, hand = reference.MLP().module(), reference.MLP().module()
    optimizer = relative(model)
    sharp = recipe(model, optimizer)
    for t in range(STEPS):
        sharp.backward(lambda b: reference.MLP.torch_loss(model, b), reference.MLP().torch_batch(t))
        optimizer.step()
        optimizer.zero_grad()
    assert sharp.step == STEPS
    if recipe is steppe.SAM:
        plain, problem = relative(hand), reference.MLP()
        for t in range(STEPS):
            w = {n: p.detach().numpy().copy() for n, p in hand.named_parameters()}
            eps = reference.perturbations.spherical(w, problem.grad(w, t), 0.05)
            d = problem.grad({k: w[k] + eps[k] for k in w}, t)
            for n, p in hand.named_parameters():
                p.grad = torch.from_numpy(d[n].copy())
            plain.step()
        assert gap(model, hand) <= 1e-10


@pytest.mark.parametrize("kind", ["Prodigy", "DAdaptAdam", "DAdaptSGD", "DAdaptLion"])
def test_the_correction_of_wsam_needs_the_rate_that_a_step_really_has(kind: str) -> None:
    po = pytest.importorskip("pytorch_optimizer")
    model = reference.MLP().module()
    with pytest.raises(ValueError, match=rf"{kind} finds the rate by itself.*expected") as error:
        steppe.WSAM(model, getattr(po, kind)(model.parameters()))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"{kind} finds the rate by itself"):
        steppe.WSAM(model, po.Lookahead(getattr(po, kind)(model.parameters())))
    steppe.SAM(model, getattr(po, kind)(model.parameters()))


def test_a_rate_that_is_lost_in_mid_training_is_refused_before_the_step() -> None:
    model = reference.MLP().module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.WSAM(model, optimizer)
    sharp.backward(lambda b: reference.MLP.torch_loss(model, b), reference.MLP().torch_batch(0))
    optimizer.param_groups[0]["lr"] = None
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="SGD has lr=None"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
