"""What a loss binds is read from its bytecode, whose steps are others in every Python: the same is found in all."""

from __future__ import annotations

import dis
from collections.abc import Callable
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe._bound import functions_of, named_by, places
from steppe._reach import read_by
from steppe._stores import Stores, stores_of

NOTHING = Stores(frozenset(), frozenset(), frozenset(), False, False)
FREE = NOTHING._replace(free=frozenset("h"))
KNOWN = NOTHING._replace(known=frozenset("h"))
ATTRIBUTE = NOTHING._replace(attributes=frozenset("h"))
KEYS = NOTHING._replace(keys=True, counts=True)  # something of a dict or an array, that is no count
COUNTS = NOTHING._replace(counts=True)

BODIES = {
    "nonlocal h; h = x": FREE,
    "nonlocal h; found, h = f(x, h)": FREE,
    "nonlocal h; h, found = f(x, h)": FREE,
    "nonlocal h; a = h = x": FREE,
    "nonlocal h; h += x": FREE,
    "nonlocal h; h += 2": FREE,
    "nonlocal h; h += 1": NOTHING,
    "nonlocal h; h = h + 1": NOTHING,
    "nonlocal h; del h": FREE,
    "nonlocal h; [(h := y) for y in x]": FREE,
    "nonlocal h; sum((h := y) for y in x)": FREE,
    "return [h for h in x]": NOTHING,
    "return [(lambda: h) for h in x]": NOTHING,
    "global h; h = x": KNOWN,
    "global h; h += 1": NOTHING,
    "global h; del h": KNOWN,
    "s.h = x": ATTRIBUTE,
    "found, s.h = f(x, s.h)": ATTRIBUTE,
    "s.h += x": ATTRIBUTE,
    "s.h += 1": ATTRIBUTE,
    "nonlocal h, a; h = x; a += 1": FREE._replace(free=frozenset("ha")),
    "nonlocal h; global z; h += 1; z = x": FREE._replace(known=frozenset("z")),
    "del s.h": ATTRIBUTE,
    "for s.h in x: pass": ATTRIBUTE,
    "class A: h = x": NOTHING,
    "d['h'] = x": KEYS,
    "d['h'] += 1": COUNTS,
    "del d['h']": KEYS,
    "d.pop('h')": NOTHING._replace(keys=True),
    "return [d.pop(y) for y in x]": NOTHING._replace(keys=True),
    "d[:] = x": KEYS,
    "d[1:] = x": KEYS,
    "d[a:b] = x": KEYS,
    "d[a:b, 1] = x": KEYS,
    "d[a:b] += 1": COUNTS,
    "del d[a:b]": KEYS,
    "i, j = j, i": NOTHING,
    "i = j = x; i = i; j = i": NOTHING,
    "; ".join(f"i = s.n{i}" for i in range(300)) + "; s.h += 1; d['z'] += 1": ATTRIBUTE._replace(counts=True),
}
"""Of every kind of code what it binds; the last has names enough that opcodes get arguments of two bytes."""


def made(body: str) -> FunctionType:
    space: dict[str, Any] = {}
    exec(f"def outer(h, f, x, s, d, a, b):\n def loss(i=0, j=0):\n  {body}\n return loss", space)
    return space["outer"](*[None] * 7)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:40])
def test_what_code_binds(body: str) -> None:
    found, expected = stores_of(made(body).__code__), BODIES[body]
    assert found[:4] == expected[:4] and (found.counts == expected.counts or found.keys)


def stores_read_as(monkeypatch: pytest.MonkeyPatch, read: Callable[[CodeType], Any]) -> Stores:
    monkeypatch.setattr("dis.get_instructions", read)
    return stores_of.__wrapped__(made("return h, x").__code__)


def step(**changes: Any) -> dis.Instruction:
    return next(dis.get_instructions(made("nonlocal h; h = x").__code__))._replace(**changes)


def test_steps_that_nobody_knows_bind_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = step(opname="<254>", opcode=254, argval=1)
    assert stores_read_as(monkeypatch, lambda code: iter([unknown])) == NOTHING


def test_code_that_cannot_be_read_binds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an opcode that `dis` takes for a name's has a number to which there is none."""
    assert stores_read_as(monkeypatch, lambda code: map(code.co_names.__getitem__, [99])) == NOTHING


def test_a_step_made_of_two_binds_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    both = step(opname="STORE_DEREF_STORE_DEREF", opcode=dis.opmap["STORE_DEREF"], argval=("h", "x"))
    assert stores_read_as(monkeypatch, lambda code: iter([both])).free == {"h", "x"}


class Slices:
    """A queue of keys that is written in slices, and binds nothing else."""

    def __init__(self, keys: Any) -> None:
        self.keys = keys

    def push(self, found: Any, first: int = 0, last: int = 2) -> None:
        self.keys[first:last] = found


@pytest.mark.parametrize("start", [torch.zeros(4, dtype=torch.float64), np.zeros(4)], ids=["tensor", "array"])
def test_what_is_written_in_slices_alone_is_that_of_the_pass_at_the_weights(start: Any) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).double(), torch.randn(2, 3, dtype=torch.float64)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=3.0)
    queue = Slices(start)

    def loss() -> Tensor:
        found = model(x).square().sum(1)
        queue.push(found.detach() if isinstance(start, Tensor) else found.detach().numpy())
        return found.mean()

    sharp.backward(loss)
    assert np.array_equal(queue.keys[:2], model(x).detach().square().sum(1))


class Training:
    def __init__(self) -> None:
        self.h = 0

    def forward(self, x: Any) -> Any:
        self.h = x
        return x


LISTED: list[Callable[[Training], Any]] = [
    lambda training: lambda: [training.forward(x) for x in range(2)],
    lambda training: lambda: sum(training.forward(x) for x in range(2)),
    lambda training: lambda: {x: training.forward(x) for x in range(2)},
]


@pytest.mark.parametrize("loss_of", LISTED, ids=["list", "generator", "dict"])
def test_a_method_called_within_a_comprehension(loss_of: Callable[[Training], Any]) -> None:
    training = Training()
    loss = loss_of(training)
    assert any(each.__code__ is Training.forward.__code__ for each in functions_of(loss))
    there = places(loss, ())
    before = [place.read() for place in there]
    loss()
    for place, found in zip(there, before, strict=True):
        place.write(found)
    assert training.h == 0


state = SimpleNamespace(h=0)


def test_a_global_named_within_a_comprehension() -> None:
    def listed() -> Any:
        return [state.h for _ in range(2)]

    def summed() -> Any:
        return sum(state.h for _ in range(2))

    for each in (listed, summed):
        assert any(thing is state for thing in read_by(each)) and state.h in named_by(each)
