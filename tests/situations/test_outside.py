"""The loss runs through trainable modules that are not in the model: a discriminator, a loss with parameters.

What they must get is what a loop by hand gives them that clears their gradient before its last pass and puts their
buffers back: the last pass's gradient alone, and one move of their state.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from tests.situations.standins import MECHANISMS
from torch import Tensor, nn

import steppe
from steppe.methods import METHODS

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def generator() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)).double()


def critic(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()


def built(name: str, model: nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    row = METHODS[name]
    make = row.optimizer or (lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9))
    optimizer = make(model.parameters())
    more = {"total_steps": 8} if name in ("aesam", "late_sam") else {}
    more |= {"start": 1} if name == "late_sam" else {"lr_max": 1.0} if name == "tail_sam" else {}
    return optimizer, row.recipe(model, optimizer, rho=0.3, **more)


def draws(count: int, size: int = 8) -> list[Tensor]:
    source = torch.Generator().manual_seed(2)
    return [torch.randn(size, 3, generator=source, dtype=torch.float64) for _ in range(count)]


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {k: b.clone() for k, b in module.named_buffers()}


class Watched:
    """A loss that notes what each pass with a graph began from."""

    def __init__(self, g: nn.Module, d: nn.Module, per_sample: bool = False) -> None:
        self.g, self.d, self.per_sample = g, d, per_sample
        self.noise = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))  # a bare parameter, in no module at all
        self.passes: list[tuple[dict[str, Tensor], dict[str, Tensor], Tensor]] = []

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            weights = {k: p.detach().clone() for k, p in self.g.named_parameters()}
            self.passes.append((weights, buffers(self.d), x))
        return self.value(self.g, self.d, x)

    def value(self, g: nn.Module, d: nn.Module, x: Tensor) -> Tensor:
        each = nn.functional.softplus(-d(g(x))).squeeze(1) * self.noise.exp()
        return each if self.per_sample else each.mean()

    def by_hand(self, number: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The outside gradient, and the buffers afterwards, of one of the passes, on copies."""
        weights, begun, x = self.passes[number]
        g, d = copy.deepcopy(self.g), copy.deepcopy(self.d)
        g.load_state_dict(weights, strict=False)
        d.load_state_dict(begun, strict=False)
        loss = self.value(g, d, x).mean()
        return list(torch.autograd.grad(loss, [*d.parameters(), self.noise])), buffers(d)


def outside(loss: Watched) -> list[nn.Parameter]:
    return [*loss.d.parameters(), loss.noise]


@pytest.mark.parametrize("name", [*MECHANISMS, "le_sam", "k_sam", "rwp"])  # the last have other kinds of passes
def test_a_discriminator_gets_the_last_pass_alone_and_moves_once(name: str) -> None:
    g, d = generator(), critic()
    optimizer, sharp = built(name, g)
    loss = Watched(g, d, METHODS[name].per_sample)
    ascents = 0
    for x in draws(5):
        loss.passes.clear()
        sharp.backward(loss, x)
        ascents += len(loss.passes) > 1
        for param, wanted in zip(outside(loss), loss.by_hand(-1)[0], strict=True):
            torch.testing.assert_close(param.grad, wanted, **TIGHT)
            param.grad = None
        if name == "k_sam":  # what stays is of the pass that found the hardest: without a graph, over all samples
            loss.passes[0] = (*loss.passes[0][:2], x)
        torch.testing.assert_close(buffers(d), loss.by_hand(0)[1], **TIGHT)
        assert all(torch.equal(a[1][k], loss.passes[0][1][k]) for a in loss.passes for k in a[1])
        optimizer.step()
        optimizer.zero_grad()
    assert ascents or sharp.ascent.direction.ahead or name in ("rst", "aesam")


def test_what_was_there_before_is_added_to() -> None:
    """The discriminator's own backward came first, and micro-batches accumulate."""
    g, d = generator(), critic()
    _, sharp = built("sam", g)
    loss, wanted = Watched(g, d), None
    d(torch.ones(8, 4, dtype=torch.float64)).mean().backward()
    loss.noise.grad = torch.ones_like(loss.noise)
    wanted = [p.grad.clone() for p in outside(loss)]  # type: ignore[union-attr]
    for x in draws(2):
        sharp.backward(loss, x)
        wanted = [a + b for a, b in zip(wanted, loss.by_hand(-1)[0], strict=True)]
    for param, value in zip(outside(loss), wanted, strict=True):
        torch.testing.assert_close(param.grad, value, **TIGHT)


def test_micro_batches_add_up_and_move_it_once_each() -> None:
    g, d = generator(), critic()
    _, sharp = built("gsam", g)
    loss, start = Watched(g, d), buffers(critic())
    sharp.backward(loss, micro_batches=draws(2))
    assert len(loss.passes) == 4
    third, fourth = loss.by_hand(2)[0], loss.by_hand(3)[0]
    for param, a, b in zip(outside(loss), third, fourth, strict=True):
        torch.testing.assert_close(param.grad, a + b, **TIGHT)
    assert int(d[1].num_batches_tracked) == 2  # type: ignore[union-attr, arg-type]
    assert all(torch.equal(loss.passes[2][1][k], start[k]) for k in start)


def test_a_look_at_a_few_samples_leaves_it_as_it_was() -> None:
    g, d = generator(), critic()
    optimizer = torch.optim.SGD(g.parameters(), lr=0.1)
    sharp = steppe.SharpnessAware(g, optimizer, ascent=steppe.Ascent(0.3), look=steppe.Look(2), combine=steppe.Mix(0.5))
    for x in draws(3):
        loss = Watched(g, d)
        sharp.backward(loss, x)
        assert [len(p[2]) for p in loss.passes] == [2, 8, 8]
        for param, wanted in zip(outside(loss), loss.by_hand(-1)[0], strict=True):
            torch.testing.assert_close(param.grad, wanted, **TIGHT)
            param.grad = None
        torch.testing.assert_close(buffers(d), loss.by_hand(1)[1], **TIGHT)


def test_a_frozen_discriminator_moves_once_too() -> None:
    g, d = generator(), critic().requires_grad_(False)
    _, sharp = built("sam", g)
    sharp.backward(lambda: d(g(draws(1)[0])).mean())
    assert int(d[1].num_batches_tracked) == 1  # type: ignore[union-attr, arg-type]
    assert all(p.grad is None for p in d.parameters())


def test_one_that_joins_late_is_found() -> None:
    """After a warm-up on the reconstruction alone; the step of its joining is right already."""
    g, d = generator(), critic()
    optimizer, sharp = built("sam", g)
    for t, x in enumerate(draws(12)):
        loss = Watched(g, d)
        if t < 6:
            sharp.backward(lambda x=x: g(x).square().mean())
        else:
            sharp.backward(loss, x)
            for param, wanted in zip(outside(loss), loss.by_hand(-1)[0], strict=True):
                torch.testing.assert_close(param.grad, wanted, **TIGHT)
                param.grad = None
            torch.testing.assert_close(buffers(d), loss.by_hand(0)[1], **TIGHT)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("how", ["in turn", "exchanged"])
def test_several_of_one_shape(how: str) -> None:
    """Losses of the same code and the same graph, about another discriminator each time."""
    g, ds = generator(), [critic(1), critic(2)]
    _, sharp = built("sam", g)
    for t, x in enumerate(draws(8)):
        d = ds[t % 2 if how == "in turn" else t // 4]
        loss = Watched(g, d)
        sharp.backward(lambda: loss(x))  # noqa: B023 - run at once
        for param, wanted in zip(outside(loss), loss.by_hand(-1)[0], strict=True):
            torch.testing.assert_close(param.grad, wanted, **TIGHT)
        d.zero_grad()


def test_it_may_be_reached_through_an_attribute() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.g, self.ds = generator(), nn.ModuleList([critic(1), critic(2)])
            _, self.sharp = built("sam", self.g)

        def step(self, x: Tensor, which: int) -> Tensor:
            return self.sharp.backward(lambda: self.ds[which](self.g(x)).mean())

    trainer = Trainer()
    for t, x in enumerate(draws(6)):
        start = {k: p.detach().clone() for k, p in trainer.g.named_parameters()}
        trainer.step(x, t % 2)
        d = trainer.ds[t % 2]
        got = [p.grad.clone() for p in d.parameters()]
        g, twin = copy.deepcopy(trainer.g), copy.deepcopy(d)
        g.zero_grad()
        twin(g(x)).mean().backward()
        length = torch.cat([p.grad.flatten() for p in g.parameters()]).norm()
        with torch.no_grad():
            for k, p in g.named_parameters():
                p.copy_(start[k] + 0.3 * p.grad / length)
        for a, b in zip(got, torch.autograd.grad(twin(g(x)).mean(), list(twin.parameters())), strict=True):
            torch.testing.assert_close(a, b, **TIGHT)
        trainer.ds.zero_grad()
        trainer.g.zero_grad()


def test_one_that_takes_its_place_behind_an_attribute_is_found_a_step_later() -> None:
    """The graph is of the same size and the code the same; that its leaves got nothing raises the doubt."""
    g = generator()
    _, sharp = built("sam", g)
    loss = Watched(g, critic(1))
    right = []
    for t, x in enumerate(draws(9)):
        if t == 6:
            loss.d = critic(2)
        loss.passes.clear()
        sharp.backward(loss, x)
        wanted = loss.by_hand(-1)[0]
        right.append(all(torch.allclose(p.grad, w) for p, w in zip(outside(loss), wanted, strict=True)))
        for p in outside(loss):
            p.grad = None
    assert right == [True] * 6 + [False] + [True] * 2


def test_a_teacher_under_no_grad_moves_once() -> None:
    """A momentum encoder in training mode: no leaf of the graph, but its statistics move."""
    g, teacher = generator(), generator()
    _, sharp = built("sam", g)

    def loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(x)
        return (g(x) - target).square().mean()

    for t, x in enumerate(draws(4)):
        sharp.backward(loss, x)
        assert int(teacher[1].num_batches_tracked) == t + 1  # type: ignore[union-attr, arg-type]


def test_an_input_that_requires_a_gradient_gets_the_last_pass_s() -> None:
    g = generator()
    _, sharp = built("sam", g)
    x = draws(1)[0].requires_grad_(True)
    weights = []

    def loss() -> Tensor:
        weights.append({k: p.detach().clone() for k, p in g.named_parameters()})
        return g(x).square().mean()

    sharp.backward(loss)
    g.load_state_dict(weights[-1], strict=False)
    torch.testing.assert_close(x.grad, torch.autograd.grad(g(x).square().mean(), x)[0], **TIGHT)


def test_in_phases_one_warning_says_what_to_pass() -> None:
    """There the host runs both passes: its statistics are put back, its gradients cannot be told apart."""
    g, d = generator(), critic()
    optimizer, sharp = built("sam", g)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t, x in enumerate(draws(3)):
            sharp.mark()
            d(g(x)).mean().backward()
            if sharp.ascend():
                d(g(x)).mean().backward()
                sharp.restore()
            assert int(d[1].num_batches_tracked) == t + 1  # type: ignore[union-attr, arg-type]
            optimizer.step()
            optimizer.zero_grad()
    told = [str(w.message) for w in caught if "ModuleList" in str(w.message)]
    assert len(told) == 1 and "Sequential" in told[0] and "both passes" in told[0]


def test_in_phases_one_module_list_is_right() -> None:
    """What the warning says to pass: the discriminator in the model, but not in the optimizer."""
    g, d = generator(), critic()
    optimizer = torch.optim.SGD(g.parameters(), lr=0.1)
    sharp = steppe.SAM(nn.ModuleList([g, d]), optimizer, rho=0.3)
    loss, x = Watched(g, d), draws(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharp.mark()
        loss(x).backward()
        assert sharp.ascend()
        loss.noise.grad = None
        loss(x).backward()
        sharp.restore()
    for param, wanted in zip(outside(loss), loss.by_hand(-1)[0], strict=True):
        torch.testing.assert_close(param.grad, wanted, **TIGHT)
    torch.testing.assert_close(buffers(d), loss.by_hand(0)[1], **TIGHT)
