"""A function that takes another batch in every pass, or other draws, is told so: nothing else would show it."""

from __future__ import annotations

import copy
import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tests.problems import batches, loss_of, net
from torch import Tensor, nn

import steppe

NEXT, DRAWS = "calls next() on a", "that the method does not know"
MODEL = net()


def told(
    loss: Callable[..., Tensor], recipe: Callable[..., Any] = steppe.SAM, *batch: Any, steps: int = 2
) -> list[str]:
    """What is said in some steps, and where: always in the user's own line."""
    model = nn.ModuleList([MODEL])
    sharp = recipe(model, torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(steps):
            sharp.backward(loss, *batch)
            sharp.optimizer.step()
    assert all(w.filename == __file__ for w in seen)
    return [str(w.message) for w in seen]


def networks() -> tuple[nn.Module, nn.Module, Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(2, 1)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, other)]
    return model, other, steppe.SAM(model, optimizers[0]), optimizers[1]


def test_another_network_that_the_function_trains_is_told_once(recwarn: pytest.WarningsRecorder) -> None:
    model, other, sharp, optimizer = networks()
    x = torch.ones(2, 3)

    def loss() -> Tensor:
        optimizer.zero_grad()
        other(model(x).detach()).square().mean().backward()
        optimizer.step()
        return other(model(x)).mean()

    warnings.simplefilter("always")
    for _ in range(4):
        sharp.backward(loss)
        sharp.optimizer.step()
        sharp.optimizer.zero_grad()
    assert [str(w.message).partition(",")[0] for w in recwarn] == ["SGD steps within the function of the loss"]
    assert recwarn[0].filename == __file__


def test_a_copy_that_it_trains_is_no_reason(recwarn: pytest.WarningsRecorder) -> None:
    model, _, sharp, optimizer = networks()
    x = torch.ones(2, 3)

    def loss() -> Tensor:
        optimizer.zero_grad()  # named, and not stepped
        fast = copy.deepcopy(model)
        inner = torch.optim.SGD(fast.parameters(), lr=0.1)
        fast(x).square().mean().backward()
        inner.step()
        return (model(x) - fast(x).detach()).square().mean()

    for _ in range(4):
        sharp.backward(loss)
    optimizer.step()
    assert not recwarn


def endless() -> Iterator[Any]:
    return itertools.cycle(batches(3))


def with_next() -> Callable[[], Tensor]:
    source = (batch for batch in endless())
    return lambda: loss_of(MODEL)(next(source))


@pytest.mark.parametrize("wrapped", [lambda f: f, partial, lambda f: lambda: f()])
def test_a_batch_taken_inside_is_told_once(wrapped: Callable[..., Any]) -> None:
    said = told(wrapped(with_next()))
    assert len(said) == 1 and NEXT in said[0] and "a generator" in said[0]


def test_the_two_passes_really_are_of_two_batches() -> None:
    taken = []
    source = endless()

    def loss() -> Tensor:
        taken.append(next(source))
        return loss_of(MODEL)(taken[-1])

    told(loss, steps=1)
    assert len(taken) == 2 and not torch.equal(taken[0][0], taken[1][0])


def test_one_pass_takes_one_batch() -> None:
    assert not told(with_next(), partial(steppe.MSAM, rho=0.1))
    assert not told(with_next(), partial(steppe.LateSAM, start=9))


def test_a_batch_taken_before_and_a_count_of_calls_are_fine() -> None:
    batch, count = next(endless()), itertools.count()
    assert not told(loss_of(MODEL), steppe.SAM, batch)
    assert not told(lambda: loss_of(MODEL)(batch) + 0 * next(count))


KINDS = [torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), random.Random(0)]


@pytest.mark.parametrize("generator", KINDS, ids=lambda g: type(g).__module__ + "." + type(g).__name__)
def test_a_generator_that_nobody_named_is_told(generator: Any) -> None:
    batch = next(endless())

    def loss() -> Tensor:
        assert generator is not None
        return loss_of(MODEL)(batch)

    said = told(loss)
    assert len(said) == 1 and DRAWS in said[0]
    assert not told(loss, partial(steppe.SAM, generators=[generator]))
    assert not told(loss, partial(steppe.SAM, same_dropout=False))
    assert not told(loss, partial(steppe.MSAM, rho=0.1))


def test_the_global_ones_need_no_name() -> None:
    batch = next(endless())
    assert not told(lambda: loss_of(MODEL)(batch) * random.random() * float(np.random.rand()) * torch.rand(()))


class Training:
    """A loop in a class of its own, as many are."""

    def __init__(self) -> None:
        self.source, self.generator, self.batch = endless(), torch.Generator(), next(endless())

    def taking(self) -> Tensor:
        return loss_of(MODEL)(next(self.source))

    def drawing(self) -> Tensor:
        torch.rand((), generator=self.generator)
        return loss_of(MODEL)(self.batch)

    def fine(self) -> Tensor:
        assert next(MODEL.parameters()) is not None
        return loss_of(MODEL)(self.batch)


@pytest.mark.parametrize("beneath", [False, True])
def test_methods_of_a_loop_are_told_of_their_object_s_iterators_and_generators(beneath: bool) -> None:
    training = Training()
    losses = [training.taking, training.drawing, training.fine]
    if beneath:
        losses = [lambda: training.taking(), lambda: training.drawing(), lambda: training.fine()]
    taking, drawing, fine = (told(loss) for loss in losses)
    assert len(taking) == len(drawing) == 1 and NEXT in taking[0] and DRAWS in drawing[0] and not fine
