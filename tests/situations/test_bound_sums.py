"""Sums, counts, means and metrics that a loss keeps are those of the pass at w, once a step."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.situations.test_bound import classified
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from steppe._bound import places


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
