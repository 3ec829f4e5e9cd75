"""A sum that a loss keeps is of the passes at w wherever it lies: at classes, in slots, in kinds of dicts and lists.

Each way gives what adds a number, and what tells the sum.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.situations.test_bound import classified
from torch import Tensor, nn
from torchmetrics import SumMetric

import steppe
from steppe._nested import copied, refill
from steppe._spaces import is_whole

Add = Callable[[float], Any]
Way = tuple[Add, Callable[[], float]]


def at_a_class() -> Way:
    class Meter:
        total = 0.0

        def update(self, value: float) -> None:
            Meter.total += value

    return Meter().update, lambda: Meter.total


def by_a_class_method() -> Way:
    class Meter:
        total = 0.0

        @classmethod
        def update(cls, value: float) -> None:
            cls.total += value

    return lambda value: Meter.update(value), lambda: Meter.total


def in_a_dict_of_a_class() -> Way:
    class Meter:
        sums = {"loss": 0.0}  # noqa: RUF012

        def update(self, value: float) -> None:
            self.sums["loss"] += value

    meter = Meter()
    return lambda value: meter.update(value), lambda: Meter.sums["loss"]


def at_the_only_one() -> Way:
    class Only:
        there: Any = None
        total = 0.0

        @classmethod
        def get(cls) -> Only:
            cls.there = cls.there or cls()
            return cls.there

    def add(value: float) -> None:
        Only.get().total += value

    return add, lambda: Only.get().total


class Slots:
    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0.0

    def update(self, value: float) -> None:
        self.total += value


def in_slots() -> Way:
    meter = Slots()
    return lambda value: meter.update(value), lambda: meter.total


def in_slots_in_a_dict() -> Way:
    meters = defaultdict(Slots)
    return lambda value: meters["loss"].update(value), lambda: meters["loss"].total


class Stat:
    def __init__(self) -> None:
        self.total = 0.0

    def push(self, value: float) -> None:
        self.total += value


def in_what_is_made_when_asked_for(factory: Any = Stat) -> Way:
    stats = defaultdict(factory)
    return lambda value: stats["loss"].push(value), lambda: stats["loss"].total


def in_what_a_function_makes() -> Way:
    return in_what_is_made_when_asked_for(lambda: Stat())


def by_a_name_that_is_made() -> Way:
    class Tasks:
        total = 0.0

        def add_loss(self, value: float) -> None:
            self.total += value

    tasks = Tasks()
    return lambda value: getattr(tasks, f"add_{'loss'}")(value), lambda: tasks.total


def in_slots_of_what_it_is_derived_of() -> Way:
    class Derived(Slots):
        pass

    meter = Derived()
    return lambda value: meter.update(value), lambda: meter.total


def in_a_list_in_slots() -> Way:
    @dataclasses.dataclass(slots=True)
    class Meter:
        sums: list[float]

    meter = Meter([0.0])

    def add(value: float) -> None:
        meter.sums[0] += value

    return add, lambda: meter.sums[0]


def of_a_frozen_one() -> Way:
    @dataclasses.dataclass(frozen=True)
    class Meter:
        total: float = 0.0

        def update(self, value: float) -> None:
            object.__setattr__(self, "total", self.total + value)

    meter = Meter()
    return lambda value: meter.update(value), lambda: meter.total


def kind_of(base: Any) -> Any:
    return type("Mine", (base,), {"__module__": __name__})


def by_key(container: Any) -> Way:
    def add(value: float) -> None:
        container[0] += value

    return add, lambda: container[0]


def in_a_queue() -> Way:
    queue = kind_of(deque)([0.0], maxlen=2)
    return lambda value: queue.append(queue[-1] + value), lambda: queue[-1]


class Named(dict):  # type: ignore[type-arg]
    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Bare(dict):  # type: ignore[type-arg]
    """As many have it: asked for anything that it lacks it raises a KeyError."""

    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__  # type: ignore[assignment]


class Itself(dict):  # type: ignore[type-arg]
    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__ = self


class Within:
    def __init__(self, **items: Any) -> None:
        object.__setattr__(self, "_items", items)

    def __getattr__(self, name: str) -> Any:
        return self._items[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._items[name] = value


def by_name(thing: Any) -> Way:
    def add(value: float) -> None:
        thing.total += value

    return add, lambda: thing.total


def of_a_function() -> Way:
    def add(value: float) -> None:
        add.total += value  # type: ignore[attr-defined]

    add.total = 0.0  # type: ignore[attr-defined]
    return add, lambda: add.total  # type: ignore[attr-defined]


def by_a_decorator() -> Way:
    def summed(function: Any) -> Any:
        @functools.wraps(function)
        def wrapped(value: float) -> Any:
            wrapped.sums["all"] += value  # type: ignore[attr-defined]
            return function(value)

        wrapped.sums = {"all": 0.0}  # type: ignore[attr-defined]
        return wrapped

    found = summed(lambda value: value)
    return lambda value: found(value), lambda: found.sums["all"]


def by_vars() -> Way:
    thing = SimpleNamespace(total=0.0)

    def add(value: float) -> None:
        vars(thing)["total"] += value

    return add, lambda: thing.total


def made_when_asked() -> Way:
    class Meter:
        @functools.cached_property
        def sums(self) -> dict[str, float]:
            return {"loss": 0.0}

    meter = Meter()

    def add(value: float) -> None:
        meter.sums["loss"] += value

    return add, lambda: meter.sums["loss"]


def in_an_array_without_dimensions() -> Way:
    thing = SimpleNamespace(total=np.zeros(()))
    return by_name(thing)[0], lambda: float(thing.total)


def in_a_metric_in_a_dict() -> Way:
    metrics = {"loss": SumMetric().set_dtype(torch.float64)}  # type: ignore[func-returns-value]
    return lambda value: metrics["loss"].update(value), lambda: float(metrics["loss"].compute())


def seven_calls_deep() -> Way:
    total = 0.0

    def add(value: float) -> None:
        nonlocal total
        total += value

    def calling(function: Add) -> Add:
        return lambda value: function(value)

    found: Add = add
    for _ in range(5):
        found = calling(found)
    return found, lambda: total


def in_a_heap() -> Way:
    heap: list[float] = []
    return lambda value: heapq.heappush(heap, value), lambda: sum(heap)


WAYS: dict[str, Callable[[], Way]] = {
    way.__name__: way
    for way in (
        at_a_class, by_a_class_method, in_a_dict_of_a_class, at_the_only_one, in_slots, in_slots_in_a_dict,
        in_what_is_made_when_asked_for, in_what_a_function_makes, by_a_name_that_is_made,
        in_slots_of_what_it_is_derived_of, in_a_list_in_slots, of_a_frozen_one, in_a_queue, of_a_function,
        by_a_decorator, by_vars, made_when_asked, in_an_array_without_dimensions, in_a_metric_in_a_dict,
        seven_calls_deep, in_a_heap,
    )
}  # fmt: skip
WAYS |= {kind.__name__: lambda kind=kind: by_name(kind(total=0.0)) for kind in (Named, Bare, Itself, Within)}
WAYS |= {
    f"of {kind.__name__}": lambda kind=kind, start=start: by_key(kind_of(kind)(start))
    for kind, start in ((dict, {0: 0.0}), (OrderedDict, {0: 0.0}), (Counter, {0: 0.0}), (list, [0.0]))
}


@pytest.mark.parametrize("way", WAYS)
def test_a_sum_is_of_the_passes_at_the_weights(way: str) -> None:
    model, sharp, x, y = classified()
    add, total = WAYS[way]()

    def loss() -> Tensor:
        found = nn.functional.cross_entropy(model(x), y)
        add(found.item())
        return found

    losses = [sharp.backward(loss).item() for _ in range(3)]
    assert total() == pytest.approx(sum(losses), abs=1e-12)


@pytest.mark.parametrize("kind", [dict, OrderedDict, Counter, list, set])
def test_what_is_in_a_container_of_a_kind_is_put_back_by_its_base(kind: Any) -> None:
    """A kind's own ``update``, ``append`` and the like may count, or refuse."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError

    names = ("update", "extend", "clear", "copy", "__setitem__", "__init__")
    mine = type("Mine", (kind,), {name: refuse for name in names if hasattr(kind, name)})
    container = mine.__new__(mine)
    content = {"b": 1, "a": 2} if issubclass(kind, dict) else ["b", "a"]
    refill(container, content)
    found = copied(container)
    assert list(found) == list(container) and (found == content or (kind is set and set(found) == {"a", "b"}))
    refill(container, type(content)())
    assert not container and len(found) == 2


class Method(steppe.SharpnessAware):
    """One of the user's own, whose insides are not the loss's, and change within a step."""


def test_all_that_an_object_has_is_the_loss_s_where_nobody_but_the_user_writes_it() -> None:
    assert is_whole(Slots) and is_whole(Within) and is_whole(SimpleNamespace)
    assert not is_whole(Method) and not is_whole(type("Data", (torch.utils.data.Dataset,), {"__module__": __name__}))
