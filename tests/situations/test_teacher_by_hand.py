"""A loss that moves its teacher's weights by hand (BYOL, DINO, mean teachers) moves them once, by the weights at w."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tests.problems import same
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import steppe
from steppe._outside import Outside

STEPS = 5
RECIPES = [partial(steppe.SAM, rho=0.3), partial(steppe.GSAM, rho=0.3), partial(steppe.LookSAM, rho=0.3, k=2)]
Move = Callable[[nn.Module, nn.Module], None]


class Following(nn.Module):
    """A teacher that is told to follow."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, size), nn.Linear(size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        for mine, other in zip(self.parameters(), model.parameters(), strict=True):
            mine.lerp_(other, 0.3)


@torch.no_grad()
def in_place(teacher: nn.Module, model: nn.Module) -> None:
    for mine, other in zip(teacher.parameters(), model.parameters(), strict=True):
        mine.mul_(0.7).add_(other, alpha=0.3)


def by_data(teacher: nn.Module, model: nn.Module) -> None:
    for mine, other in zip(teacher.parameters(), model.parameters(), strict=True):
        mine.data = 0.7 * mine.data + 0.3 * other.data


def through_data(teacher: nn.Module, model: nn.Module) -> None:
    for mine, other in zip(teacher.parameters(), model.parameters(), strict=True):
        mine.data.mul_(0.7).add_(other.data, alpha=0.3)


def pair(size: int, training: bool, frozen: bool) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, teacher = Following(size).double(), Following(size).double().train(training)
    return model, teacher.requires_grad_(not frozen)


def trained(
    recipe: Any, move: Move, inside: bool, *, size: int = 4, training: bool = False, frozen: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    model, teacher = pair(size, training, frozen)

    def loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(x)
        found = (model(x) - wanted - 1).square().mean()
        if inside:
            move(teacher, model)
        return found

    return steps(recipe, model, teacher, loss, None if inside else move)


def steps(recipe: Any, model: nn.Module, teacher: nn.Module, loss: Any, after: Move | None) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sharp = recipe(model, optimizer)
    for x in torch.randn(STEPS, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)):
        sharp.backward(loss, x)
        if after is not None:
            after(teacher, model)
        optimizer.step()
        optimizer.zero_grad()
    return {**model.state_dict(), **{f"teacher {k}": v for k, v in teacher.state_dict().items()}}


def moved_before(recipe: Any, inside: bool, training: bool, frozen: bool) -> dict[str, Tensor]:
    """The teacher moves, in every pass from where it was before the step, and is then asked."""
    model, teacher = pair(4, training, frozen)

    def loss(x: Tensor) -> Tensor:
        if inside:
            in_place(teacher, model)
        with torch.no_grad():
            there = dict(model.named_parameters())
            mixed = {k: 0.7 * p + 0.3 * there[k] for k, p in teacher.named_parameters()}
            wanted = teacher(x) if inside else functional_call(teacher, mixed, (x,))
        return (model(x) - wanted - 1).square().mean()

    return steps(recipe, model, teacher, loss, None if inside else in_place)


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(float((one[k] - other[k]).abs().max()) <= 1e-10 for k in one)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_however_it_stands(training: bool, frozen: bool) -> None:
    how: Any = {"training": training, "frozen": frozen}
    assert close(*(trained(RECIPES[0], in_place, inside, **how) for inside in (False, True)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_one_that_moves_before_it_is_asked(training: bool, frozen: bool) -> None:
    assert close(*(moved_before(RECIPES[0], inside, training, frozen) for inside in (False, True)))


@pytest.mark.parametrize("size", [4, 2**13])  # of small and of large tensors
@pytest.mark.parametrize("move", [in_place, by_data, through_data, lambda teacher, model: teacher.follow(model)])
def test_however_it_is_moved(move: Move, size: int) -> None:
    assert close(*(trained(RECIPES[0], move, inside, size=size) for inside in (False, True)))


@pytest.mark.parametrize("recipe", RECIPES[1:], ids=lambda recipe: recipe.func.__name__)
def test_with_other_methods(recipe: Any) -> None:
    assert close(*(trained(recipe, in_place, inside) for inside in (False, True)))


def test_an_average_of_torch_s_that_is_evaluated() -> None:
    def trained(inside: bool) -> dict[str, Tensor]:
        model, _ = pair(4, training=True, frozen=False)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7)).eval()

        def loss(x: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = average(x)
            found = (model(x) - wanted - 1).square().mean()
            if inside:
                average.update_parameters(model)
            return found

        after = None if inside else lambda average, model: average.update_parameters(model)
        return steps(RECIPES[0], model, average, loss, after)

    assert close(trained(False), trained(True))


def test_one_that_is_only_evaluated_costs_nothing() -> None:
    model, teacher = pair(4, training=False, frozen=True)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for x in torch.randn(4, 6, 3, dtype=torch.float64):
        sharp.backward(lambda x=x: (model(x) - teacher(x)).square().mean())
    outside: Outside = sharp._making.passes.outside
    assert not outside.modules()


def test_a_trainable_one_that_is_looked_at_without_a_graph_has_its_gradient_all_the_same() -> None:
    model, critic = pair(4, training=True, frozen=False)
    sharp, x = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3), torch.eye(3).double()

    def loss() -> Tensor:
        with torch.no_grad():
            weight = critic(x).square().mean()
        return weight * (model(x) - critic(x)).square().mean()

    sharp.backward(loss)
    found = {n: p.grad.clone() for n, p in critic.named_parameters()}
    with torch.no_grad(), sharp.perturbed():
        pass
    model.zero_grad()
    critic.zero_grad()
    loss().backward()
    with sharp.perturbed():
        critic.zero_grad()
        loss().backward()
        assert same(found, {n: p.grad for n, p in critic.named_parameters()})
