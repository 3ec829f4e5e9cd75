"""What a loss binds by itself (a hidden state, parts of its batch) moves once a step: that of the pass at w."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.problems import same
from torch import Tensor, nn

import steppe

STEPS = 4
hidden = torch.zeros(())
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Recurrent(nn.Module):
    """A network whose hidden state is the loop's to carry on."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(7, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.cell(torch.cat([x, h], 1)))
        return self.head(h).square().mean(), h.detach()


def by_nonlocal(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    h = start

    def loss(x: Tensor) -> Tensor:
        nonlocal h
        found, h = model(x, h)
        return found

    return loss


def by_nonlocal_beneath(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    loss = by_nonlocal(model, start)
    return lambda x: loss(x)


def by_global(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    global hidden
    hidden = start

    def loss(x: Tensor) -> Tensor:
        global hidden
        found, hidden = model(x, hidden)
        return found

    return loss


def by_key(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    state = {"h": start}

    def loss(x: Tensor) -> Tensor:
        found, state["h"] = model(x, state["h"])
        return found

    return loss


class Base:
    def __init__(self, model: nn.Module, start: Tensor) -> None:
        self.model, self.h = model, start

    def forward(self, x: Tensor) -> Tensor:
        found, self.h = self.model(x, self.h)
        return found


class Training(Base):
    def loss(self, x: Tensor) -> Tensor:
        return self.forward(x)


def by_attribute(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    return Training(model, start).loss


def by_attribute_beneath(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    training = Training(model, start)
    return lambda x: training.loss(x)


def in_a_namespace(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    state = SimpleNamespace(h=start)

    def loss(x: Tensor) -> Tensor:
        found, state.h = model(x, state.h)
        return found

    return loss


class Loss:
    def __init__(self, model: nn.Module, start: Tensor) -> None:
        self.model, self.h = model, start

    def __call__(self, x: Tensor) -> Tensor:
        found, self.h = self.model(x, self.h)
        return found


def by_call(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    return Loss(model, start)


def by_call_beneath(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    loss = Loss(model, start)
    return lambda x: loss(x)


def by_partial(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    def loss(state: dict[str, Tensor], x: Tensor) -> Tensor:
        found, state["h"] = model(x, state["h"])
        return found

    return partial(loss, {"h": start})


def carried(state: Any, model: nn.Module, x: Tensor) -> Tensor:
    found, state.h = model(x, state.h)
    return found


def handed_on(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    state = SimpleNamespace(h=start)
    return lambda x: carried(state, model, x)


def handed_on_by_key(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    state = {"h": start}

    def carried(state: dict[str, Tensor], x: Tensor) -> Tensor:
        found, state["h"] = model(x, state["h"])
        return found

    return lambda x: carried(state, x)


def in_a_list(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    hidden, calls = [start], [0]

    def loss(x: Tensor) -> Tensor:
        calls[0] += 1
        found, hidden[0] = model(x, hidden[0])
        return found

    return loss


class Deep:
    def __init__(self, model: nn.Module, start: Tensor) -> None:
        self.model, self.state = model, SimpleNamespace(carried=SimpleNamespace(h=start))

    def __call__(self, x: Tensor) -> Tensor:
        found, self.state.carried.h = self.model(x, self.state.carried.h)
        return found


class Deeper:
    def __init__(self, model: nn.Module, start: Tensor) -> None:
        self.inner = Training(model, start)

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner.loss(x)


def by_keyword(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    def loss(x: Tensor, *, state: Any = SimpleNamespace(h=start)) -> Tensor:  # noqa: B008
        found, state.h = model(x, state.h)
        return found

    return loss


MODULE = """
h = None

def carried(model, x):
    global h
    found, h = model(x, h)
    return found

def handed(state, model, x):
    found, state.h = model(x, state.h)
    return found
"""


def of_a_module() -> ModuleType:
    mine = ModuleType("mine")
    mine.__file__ = "mine.py"
    exec(MODULE, vars(mine))
    return mine


def by_a_module(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    mine = of_a_module()
    mine.h = start  # type: ignore[attr-defined]
    return lambda x: mine.carried(model, x)


def handed_to_a_module(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    mine, state = of_a_module(), SimpleNamespace(h=start)
    return lambda x: mine.handed(state, model, x)


def in_a_module(model: nn.Module, start: Tensor) -> Callable[[Tensor], Tensor]:
    mine = of_a_module()
    mine.h = start  # type: ignore[attr-defined]

    def loss(x: Tensor) -> Tensor:
        found, mine.h = model(x, mine.h)  # type: ignore[attr-defined]
        return found

    return loss


WAYS = [
    by_nonlocal, by_nonlocal_beneath, by_global, by_key, by_attribute, by_attribute_beneath, in_a_namespace, by_call,
    by_call_beneath, by_partial, handed_on, handed_on_by_key, in_a_list, Deep, Deeper, by_keyword, by_a_module,
    handed_to_a_module, in_a_module,
]  # fmt: skip
RECIPES = [
    partial(steppe.SAM, rho=0.3), partial(steppe.GSAM, rho=0.3), partial(steppe.LookSAM, k=2),
    partial(steppe.AESAM, total_steps=STEPS),
]  # fmt: skip


def stream() -> Tensor:
    return torch.randn(STEPS, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Recurrent().double()


def trained(recipe: Any, way: Callable[..., Any] | None) -> dict[str, Tensor]:
    """Weights; without a way the hidden state of the pass at w is carried on by the loop itself."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sharp, h = recipe(model, optimizer), torch.zeros(2, 4, dtype=torch.float64)
    loss = way(model, h) if way else None
    for x in stream():
        sharp.backward(loss or (lambda x, h=h: model(x, h)[0]), x)
        h = model(x, h)[1] if loss is None else h
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_hidden_state_that_the_loss_carries_on(way: Callable[..., Any]) -> None:
    assert same(trained(RECIPES[0], way), trained(RECIPES[0], None))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.func.__name__)
def test_the_same_with_other_methods(recipe: Any) -> None:
    assert same(trained(recipe, by_nonlocal), trained(recipe, None))


def classified() -> tuple[nn.Module, Any, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=3.0)
    return model, sharp, torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))


@pytest.mark.parametrize("wrapped", [dict, UserDict, lambda batch: list(batch.values())])
@pytest.mark.parametrize("recipe", [steppe.SAM, steppe.GSAM, partial(steppe.SAM, samples=2), steppe.ESAM, steppe.KSAM])
def test_a_loss_that_takes_the_labels_out_of_its_batch(recipe: Any, wrapped: Callable[..., Any]) -> None:
    model, _, x, y = classified()
    sharp = recipe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    reduction = "none" if recipe in (steppe.ESAM, steppe.KSAM) else "mean"
    taken: list[int] = []

    def loss(batch: Any) -> Tensor:
        labels = batch.pop(1) if isinstance(batch, list) else batch.pop("labels")
        taken.append(len(labels))
        rest = batch[0] if isinstance(batch, list) else batch["x"]
        return nn.functional.cross_entropy(model(rest), labels, reduction=reduction)

    batch = wrapped({"x": x, "labels": y})
    sharp.backward(loss, batch)
    assert len(batch) == 1 and len(taken) > 1  # as one pass leaves it


def test_an_error_leaves_what_the_failed_pass_bound() -> None:
    model, sharp, x, y = classified()
    passes: list[int] = []
    total = 0.0

    def loss() -> Tensor:
        nonlocal total
        passes.append(1)
        total += 1.0
        if len(passes) == 2:
            raise ArithmeticError
        return nn.functional.cross_entropy(model(x), y)

    with pytest.raises(ArithmeticError):
        sharp.backward(loss)
    assert total == 1.0


def test_a_function_that_binds_nothing_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sharp, x, y = classified()
    asked: list[Any] = []
    monkeypatch.setattr("steppe._bound.functions_of", lambda function: asked.append(function) or [])
    monkeypatch.setattr("steppe._outside.held_by", lambda function: [])
    monkeypatch.setattr("steppe._lookout.held_by", lambda function: [])  # in the first steps
    monkeypatch.setattr("steppe._outside.writes", lambda function: False)
    for _ in range(6):
        sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
    assert sum(function is not None for function in asked) == 1
