"""Optimizers that step in hooks of the backward would step in each pass: refused before a weight has moved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests import reference
from tests.situations.standins import gap
from torch import Tensor, nn

import steppe
from steppe._lookout import Lookout

SENTENCE = r"inside a backward.*register_post_accumulate_grad_hook.*expected"


def one_each(model: nn.Module) -> None:
    """torch's tutorial: an optimizer for every parameter, stepped and zeroed by a hook of it."""
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def hook(p: Tensor) -> None:
        optimizers[p].step()  # type: ignore[index]
        optimizers[p].zero_grad()  # type: ignore[index]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)


def by_itself(model: nn.Module) -> None:
    """No optimizer at all: the hook moves the weight."""

    @torch.no_grad()
    def hook(p: Tensor) -> None:
        p.sub_(p.grad, alpha=0.1)
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)


def the_one_given(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    last = next(iter(model.parameters()))
    last.register_post_accumulate_grad_hook(lambda p: optimizer.step())


METHODS = [steppe.SAM, steppe.LookSAM, steppe.WSAM, steppe.S2SAM, lambda m, o: steppe.RST(m, o, p=0.0)]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("kind", ["one each", "the one given"])
def test_refused_before_any_weight_has_moved(kind: str, make: Callable[..., steppe.SharpnessAware], when: str) -> None:
    model, fresh = reference.MLP().module(), reference.MLP().module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    put = (lambda: one_each(model)) if kind == "one each" else (lambda: the_one_given(model, optimizer))
    if when == "before":
        put()
    sharp = make(model, optimizer)
    if when == "after":
        put()
    with pytest.raises(RuntimeError, match=SENTENCE) as error:
        sharp.backward(lambda b: reference.MLP.torch_loss(model, b), reference.MLP().torch_batch(0))
    assert "\n" not in str(error.value)
    assert gap(model, fresh) == 0 and not sharp.last.ascended and sharp.step == 0


def test_a_hook_that_moves_the_weight_itself_is_refused_after_the_first_pass() -> None:
    model = reference.MLP().module()
    by_itself(model)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match=SENTENCE):
        sharp.backward(lambda b: reference.MLP.torch_loss(model, b), reference.MLP().torch_batch(0))
    assert not sharp.last.ascended


def test_hooks_that_only_look_and_other_networks_steps_are_welcome() -> None:
    """A hook that counts, and a loss function that trains a probe of its own on the way."""
    model, probe, hand = reference.MLP().module(), nn.Linear(6, 3, dtype=torch.float64), reference.MLP().module()
    seen: list[int] = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.append(1))
    theirs = torch.optim.SGD(probe.parameters(), lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.SAM(model, optimizer)

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        nn.functional.cross_entropy(probe(batch[0]), batch[1]).backward()
        theirs.step()
        theirs.zero_grad()
        return reference.MLP.torch_loss(model, batch)

    with pytest.warns(UserWarning, match="SGD steps within the function"):  # it steps in both passes
        sharp.backward(loss_of, reference.MLP().torch_batch(0))
    plain = torch.optim.SGD(hand.parameters(), lr=0.1)
    steppe.SAM(hand, plain).backward(lambda b: reference.MLP.torch_loss(hand, b), reference.MLP().torch_batch(0))
    for one, other in zip(model.parameters(), hand.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
    assert sharp.last.ascended and len(seen) == 2 * len(list(model.parameters()))


@pytest.mark.parametrize("make", [steppe.SAM, steppe.LookSAM, steppe.GSAM, steppe.ASAM, steppe.FSAM, steppe.WSAM])
def test_it_never_says_that_it_ascended_with_nothing_perturbed(make: Callable[..., steppe.SharpnessAware]) -> None:
    """The loss is of a parameter that is not perturbed: a plain step."""
    model = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    groups = [{"params": model["a"].parameters()}, {"params": model["b"].parameters(), "perturb": False}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    sharp = make(model, optimizer)
    calls = []

    def loss() -> Tensor:
        calls.append(1)
        return model["b"](torch.ones(1, 2)).square().sum()

    loss().backward()
    expected = [p.grad.clone() for p in model["b"].parameters() if p.grad is not None]
    model.zero_grad()
    calls.clear()
    sharp.backward(loss)
    assert not sharp.last.ascended and len(calls) == 1
    assert all(torch.equal(p.grad, e) for p, e in zip(model["b"].parameters(), expected, strict=True))  # type: ignore[arg-type]
    optimizer.step()
    assert sharp.step == 1


def test_an_interrupt_of_the_lines_that_clean_up_refuses_no_later_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference.MLP().module()
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.SAM(model, optimizer)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Lookout, "end", lambda self: self.within and interrupted())
        sharp.backward(lambda b: reference.MLP.torch_loss(model, b), reference.MLP().torch_batch(0))
    sharp.backward(lambda b: reference.MLP.torch_loss(model, b), reference.MLP().torch_batch(0))
    optimizer.step()
    assert sharp.step == 1
