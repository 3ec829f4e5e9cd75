"""Layers exchanged, parameters replaced, frozen, unfrozen or renamed in mid-training: the present ones count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.situations.exchanges import (
    CHANGES,
    HAND,
    LR,
    RHO,
    TIGHT,
    ByHand,
    batch,
    freeze,
    longer,
    losses,
    middle,
    net,
    renamed,
    untold,
)
from tests.situations.standins import MECHANISMS
from torch import Tensor, nn

import steppe
from steppe.methods import METHODS

# That something has changed is found out alike for all methods: every change for the one that remembers most. What
# each remembers by itself meets another tensor in an old place, another shape, another name, and one that is frozen.
KEPT = [(method, change) for method in HAND for change in (middle, longer, renamed, freeze)]
KEPT += [("look_sam_guarded", change) for change in CHANGES if ("look_sam_guarded", change) not in KEPT]


@pytest.mark.parametrize(("method", "change"), KEPT, ids=lambda x: getattr(x, "__name__", x))
def test_equals_the_loop_by_hand(method: str, change: Callable[..., None]) -> None:
    """The change falls between a refresh of LookSAM and a step that reuses it."""
    one, other = net(), net()
    base, plain = (torch.optim.SGD(m.parameters(), lr=LR) for m in (one, other))
    sharp = METHODS[method.removesuffix("_guarded")].recipe(one, base, rho=RHO, **HAND[method])
    hand = ByHand(method, other, plain)
    for t in range(9):
        if t == 5:
            change(one, base)
            change(other, plain)
        sharp.backward(losses(one), batch(t))
        base.step()
        for p in one.parameters():
            p.grad = None
        hand.step(batch(t))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


@pytest.mark.parametrize("change", [middle, longer, untold], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", MECHANISMS)
def test_every_method_goes_on_with_what_is_there(name: str, change: Callable[..., None]) -> None:
    """The present parameters are moved, and none is handed the sum of two passes."""
    model, row = net(), METHODS[name]
    base = (row.optimizer or (lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9)))(model.parameters())
    more = {"total_steps": 12} if name in ("aesam", "late_sam") else {}
    more |= {"start": 1} if name == "late_sam" else {"s": 0.9} if name == "sl_sam" else {}
    sharp = row.recipe(model, base, rho=RHO, **more)
    passes: list[dict[str, Tensor]] = []

    def loss(data: Any) -> Tensor:
        if torch.is_grad_enabled():
            passes.append({k: p.detach().clone() for k, p in model.named_parameters()})
        return losses(model, row.per_sample)(data)

    ever = set()
    for t in range(12):
        if t == 3:
            change(model, base)
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        passes.clear()
        sharp.backward(loss, batch(t))
        assert all(torch.equal(p, before[k]) for k, p in model.named_parameters())
        if t >= 3:
            ever |= {k for at in passes for k in at if not torch.equal(at[k], before[k])}
        held = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None and change is untold}
        if {"b.weight"} <= held.keys() and t >= 3 and name != "esam":
            with torch.no_grad():
                for k, p in model.named_parameters():
                    p.copy_(passes[-1][k])
            wanted = torch.autograd.grad(losses(model)(batch(t)), model.b.weight)[0]
            with torch.no_grad():
                for k, p in model.named_parameters():
                    p.copy_(before[k])
            torch.testing.assert_close(held["b.weight"], wanted, **TIGHT)
        base.step()
        for p in model.parameters():
            p.grad = None
    mine = {p for g in base.param_groups for p in g["params"]}
    moved = {k for k, p in model.named_parameters() if p in mine and p.requires_grad}
    assert ever == ({k for k in moved if k.startswith("norm")} if name == "sam_on" else moved)


@pytest.mark.parametrize("change", [middle, longer, untold], ids=lambda f: f.__name__)
def test_parameters_that_the_optimizer_never_heard_of_are_told_of_once(
    change: Callable[..., None], recwarn: pytest.WarningsRecorder
) -> None:
    """And those that it was given are not."""
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=LR)
    sharp = steppe.SAM(model, base, rho=RHO)
    for t in range(4):
        if t == 2:
            change(model, base)
        sharp.backward(losses(model), batch(t))
        base.step()
        told = [str(each.message) for each in recwarn if "have left the model" in str(each.message)]
        assert len(told) == (1 if change is untold and t >= 2 else 0)
    assert all("lacks 2 new ones, the first b.weight, which no step will move" in each for each in told)


def test_unfrozen_in_mid_training() -> None:
    """Layer by layer, as in gradual unfreezing, with a group for each; equals the loop by hand."""
    one, other = net(), net()
    bases = []
    for model in (one, other):
        for p in model.parameters():
            p.requires_grad_(False)
        model.head.requires_grad_(True)
        bases.append(torch.optim.SGD(model.head.parameters(), lr=LR))
    sharp, hand = steppe.SAM(one, bases[0], rho=RHO), ByHand("sam", other, bases[1])
    for t in range(8):
        if t in (3, 6):
            for model, base in zip((one, other), bases, strict=True):
                layer = model.c if t == 3 else model.b
                layer.requires_grad_(True)
                base.add_param_group({"params": layer.parameters()})
        sharp.backward(losses(one), batch(t))
        bases[0].step()
        bases[0].zero_grad()
        hand.step(batch(t))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


def test_in_phases_too() -> None:
    one, other = net(), net()
    bases = [torch.optim.SGD(m.parameters(), lr=LR) for m in (one, other)]
    sharp, hand = steppe.SAM(one, bases[0], rho=RHO), ByHand("sam", other, bases[1])
    for t in range(6):
        if t == 3:
            middle(one, bases[0])
            middle(other, bases[1])
        sharp.mark()
        losses(one)(batch(t)).backward()
        assert sharp.ascend()
        losses(one)(batch(t)).backward()
        sharp.restore()
        bases[0].step()
        bases[0].zero_grad()
        hand.step(batch(t))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


def test_a_state_is_of_the_present_parameters() -> None:
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=LR)
    sharp = steppe.FSAM(model, base, rho=RHO)
    sharp.backward(losses(model), batch(0))
    base.step()
    longer(model, base)
    average = sharp.state_dict()["memory"]["ascent"]["average"]
    assert average["table.weight"].shape == (7, 4) and not average["table.weight"].any()
    assert average["b.weight"].any()
    sharp.load_state_dict(sharp.state_dict())


def test_an_id_that_comes_back_is_another_parameter() -> None:
    """A freed parameter's address is soon used again; only the object itself says which one it is."""
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=LR)
    sharp = steppe.FSAM(model, base, rho=RHO)
    for t in range(6):
        sharp.backward(losses(model), batch(t))
        base.step()
        base.zero_grad()
        middle(model, base)
        average = sharp.state_dict()["memory"]["ascent"]["average"]
        assert not average["b.weight"].any() and average["a.weight"].any()


@pytest.mark.parametrize("make", [nn.LazyLinear, lambda n: nn.LazyBatchNorm1d(affine=False)])
def test_a_lazy_module_gets_a_sentence(make: Callable[[int], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), make(3))
    base = torch.optim.SGD(model.parameters(), lr=LR)
    with pytest.raises(ValueError, match=r"lazy.*1\.(weight|running_mean).*run one batch through the model first"):
        steppe.SAM(model, base)
    model(torch.ones(2, 2))
    steppe.SAM(model, base).backward(lambda: model(torch.ones(2, 2)).sum())
