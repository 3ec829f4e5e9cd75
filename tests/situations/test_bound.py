"""What a loss binds by itself (a hidden state, logits, sums) moves once a step: that of the pass at w."""

from __future__ import annotations

from collections import UserDict, deque
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.problems import same
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

import steppe
from steppe._bound import places

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


@pytest.mark.parametrize("step", range(4))
def test_logits_and_sums_are_those_of_the_pass_at_the_weights(step: int) -> None:
    model, sharp, x, y = classified()
    logits, right, total, batches = None, 0, 0.0, 0

    def loss() -> Tensor:
        nonlocal logits, right, total, batches
        logits = model(x)
        found = nn.functional.cross_entropy(logits, y)
        right, total, batches = right + int((logits.argmax(1) == y).sum()), total + found.item(), batches + 1
        return found

    for _ in range(step):
        sharp.backward(loss)
    found = sharp.backward(loss)
    assert torch.equal(logits, model(x)) and batches == step + 1
    assert right == batches * int((model(x).argmax(1) == y).sum()) and total == pytest.approx(batches * float(found))


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


class Queue:
    """The latest keys, as MoCo keeps them: a buffer that is written in place, and a place in it."""

    def __init__(self) -> None:
        self.keys, self.at = torch.eye(8, 4, dtype=torch.float64), 0

    def push(self, keys: Tensor) -> None:
        self.keys[self.at : self.at + len(keys)] = keys
        self.at = (self.at + len(keys)) % len(self.keys)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.func.__name__)
def test_a_queue_of_ones_own_class_that_the_loss_pushes_into(recipe: Any) -> None:
    def trained(inside: bool) -> tuple[dict[str, Tensor], Tensor, int]:
        torch.manual_seed(0)
        model, teacher, queue = nn.Linear(3, 4).double(), nn.Linear(3, 4).double().requires_grad_(False), Queue()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sharp = recipe(model, optimizer)

        def loss(x: Tensor) -> Tensor:
            keys = teacher(x)
            found = nn.functional.cross_entropy(model(x) @ torch.cat([keys, queue.keys]).T, torch.arange(len(x)))
            if inside:
                queue.push(keys)
            return found

        for x in stream():
            sharp.backward(loss, x)
            if not inside:
                queue.push(teacher(x))
            optimizer.step()
            optimizer.zero_grad()
        return dict(model.state_dict()), queue.keys, queue.at

    one, other = trained(True), trained(False)
    assert same(one[0], other[0]) and torch.equal(one[1], other[1]) and one[2] == other[2] == 0


def bounded() -> Any:
    return deque([torch.eye(4, dtype=torch.float64)[:1]], maxlen=3)


def a_list() -> Any:
    return [torch.eye(4, dtype=torch.float64)[:1]]


@pytest.mark.parametrize("start", [bounded, a_list])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.func.__name__)
def test_a_queue_of_tensors_is_what_the_pass_at_the_weights_left(recipe: Any, start: Callable[[], Any]) -> None:
    def push(queue: Any, keys: Tensor) -> None:
        queue.append(keys)
        while len(queue) > 3:
            queue.pop(0)

    def trained(inside: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
        torch.manual_seed(0)
        model, queue, notes = nn.Linear(3, 4).double(), start(), list[int]()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sharp = recipe(model, optimizer)

        def loss(x: Tensor) -> Tensor:
            notes.append(len(notes))
            keys = model(x)
            found = nn.functional.cross_entropy(keys @ torch.cat([keys.detach(), *queue]).T, torch.arange(len(x)))
            if inside:
                push(queue, keys.detach())
            return found

        for x in stream():
            keys = model(x).detach()
            sharp.backward(loss, x)
            if not inside:
                push(queue, keys)
            optimizer.step()
            optimizer.zero_grad()
        assert notes == list(range(len(notes))) and len(notes) > STEPS  # of every pass, as before
        return dict(model.state_dict()), list(queue)

    one, other = trained(True), trained(False)
    assert same(one[0], other[0])
    assert len(one[1]) == 3 and all(map(torch.equal, one[1], other[1]))


def test_counts_in_a_container_are_those_of_the_functions_that_read_it() -> None:
    model, sharp, x, y = classified()
    place, calls = {"at": 0}, {"n": 0}

    def counted() -> None:
        calls["n"] += 1

    def loss() -> Tensor:
        counted()
        place["at"] = place["at"] + 2
        return nn.functional.cross_entropy(model(x), y)

    sharp.backward(loss)
    assert place["at"] == 2 and calls["n"] == 2


@pytest.mark.parametrize(("numbers", "copied"), [(2**17, True), (2**17 + 1, False)])
def test_arrays_that_may_be_all_of_the_data_are_not_copied_at_every_step(numbers: int, copied: bool) -> None:
    data, kept = np.zeros(numbers), None

    def loss_of() -> None:
        nonlocal kept
        kept = data[0]

    assert any(isinstance(place.read(), np.ndarray) for place in places(loss_of, ())) == copied


def test_arrays_and_dicts_of_objects_count_the_pass_at_the_weights() -> None:
    model, sharp, x, y = classified()
    confusion, training = np.zeros((2, 2)), SimpleNamespace(sums={"loss": 0.0}, seen=np.zeros(2))
    counted = np.zeros(2)

    def loss() -> Tensor:
        nonlocal counted
        logits = model(x)
        found = nn.functional.cross_entropy(logits, y)
        for true, taken in zip(y.tolist(), logits.argmax(1).tolist(), strict=True):
            confusion[true, taken] += 1
        counted += np.bincount(y, minlength=2)
        training.sums["loss"] += found.item()
        training.seen[:] = training.seen + np.bincount(y, minlength=2)
        return found

    found = sharp.backward(loss)
    expected = torch.stack([torch.bincount(model(x).argmax(1)[y == k], minlength=2) for k in range(2)])
    assert confusion.tolist() == expected.tolist() and training.sums["loss"] == float(found)
    assert counted.tolist() == training.seen.tolist() == torch.bincount(y, minlength=2).tolist()


def test_metrics_that_are_updated_count_the_pass_at_the_weights() -> None:
    model, sharp, x, y = classified()
    right, seen = MulticlassAccuracy(2, average="micro"), MetricCollection([MulticlassF1Score(2), MeanMetric()])
    training = SimpleNamespace(losses=MeanMetric())

    def loss() -> Tensor:
        logits = model(x)
        found = nn.functional.cross_entropy(logits, y)
        right.update(logits, y)
        training.losses.update(found.detach())
        seen["MeanMetric"].update(found.detach())
        return found

    losses = [sharp.backward(loss) for _ in range(5)]
    assert float(right.compute()) == float((model(x).argmax(1) == y).double().mean())
    assert float(training.losses.weight) == float(seen["MeanMetric"].weight) == len(losses)
    torch.testing.assert_close(training.losses.compute().double(), losses[0], rtol=1e-6, atol=0)


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


def test_counts_of_passes_count_passes() -> None:
    model, sharp, x, y = classified()
    calls, number, passes = 0, SimpleNamespace(calls=0, loss=None), list[int]()
    by_key: dict[str, Any] = {"calls": 0, "loss": None}
    by_name = {"calls": 0}

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        number.calls += 1
        by_key["calls"] += 1
        by_name["calls"] += 1
        passes.append(calls)
        number.loss = by_key["loss"] = found = nn.functional.cross_entropy(model(x), y)
        return found

    found = sharp.backward(loss)
    assert calls == by_name["calls"] == 2 and passes == [1, 2]
    assert number.calls == by_key["calls"] == 1, "they may be what a sum that stands beside them is divided by"
    assert torch.equal(number.loss, found) and torch.equal(by_key["loss"], found)


class Mean:
    """As every training script has one."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float) -> None:
        self.total += value
        self.count += 1


@pytest.mark.parametrize("where", ["object", "partial", "names", "dict", "list"])
def test_a_mean_of_losses_divides_by_what_it_has_summed(where: str) -> None:
    model, sharp, x, y = classified()
    total, count, mean = 0.0, 0, Mean()
    by_key: dict[str, Any] = {"total": 0.0, "count": 0}
    listed: list[Any] = [0.0, 0]

    def in_names(value: float) -> None:
        nonlocal total, count
        total += value
        count += 1

    def in_dict(value: float) -> None:
        by_key["total"] += value
        by_key["count"] += 1

    def in_list(value: float) -> None:
        listed[0] += value
        listed[1] += 1

    beside = partial(Mean.update, mean)
    update = {"object": mean.update, "partial": beside, "names": in_names, "dict": in_dict, "list": in_list}[where]

    def loss() -> Tensor:
        found = nn.functional.cross_entropy(model(x), y)
        update(found.item())
        return found

    losses = [sharp.backward(loss).item() for _ in range(3)]
    found = {"names": (total, count), "dict": tuple(by_key.values()), "list": tuple(listed)}
    assert found.get(where, (mean.total, mean.count)) == (sum(losses), 3)


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
