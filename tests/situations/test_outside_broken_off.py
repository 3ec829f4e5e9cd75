"""Modules outside the model where a pass is broken off: no hook stays, nothing is kept alive, all is as it was."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

import pytest
import torch
from tests.situations.test_outside import TIGHT, Watched, built, critic, draws, generator
from torch import Tensor, nn
from torch.nn.modules import module

import steppe
from steppe._outside import Outside


def hooks() -> list[int]:
    return [*module._global_forward_pre_hooks, *module._global_forward_hooks]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["_missed", "_disarm", "_close", "over"])
@pytest.mark.parametrize("then", ["another module", "the method is gone", "the next step"])
def test_an_interrupt_while_a_pass_is_closed_leaves_no_hook(
    monkeypatch: pytest.MonkeyPatch, at: str, then: str
) -> None:
    """One that it could not take away goes with the next module that runs, or with the next step."""
    g, d = generator(), critic()
    _, sharp = built("sam", g)
    (x,) = draws(1)
    before = hooks()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as kept:
        if at == "_disarm":  # nothing is there as yet when it is called first
            patch.setattr(Outside, "_missed", lambda self: patch.setattr(Outside, at, interrupted))
        else:
            patch.setattr(Outside, at, interrupted)
        sharp.backward(Watched(g, d), x)
    assert kept.traceback, "its frames are alive, as those of the latest error in a notebook are"
    if then == "the next step":
        sharp.backward(Watched(g, d), x)
    else:
        if then == "the method is gone":
            del sharp, kept
            gc.collect()
        nn.Linear(4, 4)(torch.ones(1, 4))
    assert hooks() == before


def test_an_interrupt_while_a_phase_is_closed_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    g, d = generator(), critic()
    _, sharp = built("sam", g)
    (x,) = draws(1)
    before = hooks()
    sharp.mark()
    d(g(x)).mean().backward()
    assert sharp.ascend()
    d(g(x)).mean().backward()
    assert len(hooks()) == len(before) + 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Outside, "close_phase", interrupted)
        sharp.restore()
    nn.Linear(4, 4)(torch.ones(1, 4))
    assert hooks() == before


def test_nothing_is_kept_alive_and_no_hook_stays() -> None:
    g, d = generator(), critic()
    _, sharp = built("sam", g)
    before = hooks()  # of methods that other tests left
    for x in draws(3):
        sharp.backward(Watched(g, d), x)
    assert hooks() == before
    gone = [weakref.ref(d), weakref.ref(d[0].weight)]
    del d
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.parametrize("number", [1, 2])
def test_after_an_error_its_gradient_and_state_are_as_they_were(number: int) -> None:
    g, d = generator(), critic()
    _, sharp = built("sam", g)
    d(torch.ones(8, 4, dtype=torch.float64)).mean().backward()
    before, calls = [p.grad.clone() for p in d.parameters()], 0

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        value = d(g(draws(1)[0])).mean()
        if calls == number:
            raise RuntimeError("out of memory")
        return value

    with pytest.raises(RuntimeError, match="out of memory"):
        sharp.backward(loss)
    for param, grad in zip(d.parameters(), before, strict=True):
        torch.testing.assert_close(param.grad, grad, **TIGHT)


class Fails:
    """A loss that breaks off in one of its calls, and a tensor of its own beside it."""

    def __init__(self, model: nn.Module, error: type[Exception], at: int) -> None:
        self._model, self._error, self._at = model, error, at
        self._calls: list[int] = []  # which grows with every pass, where a count would move once
        self.own = torch.ones(3)

    def __call__(self, x: Tensor) -> Tensor:
        self._calls.append(1)
        if len(self._calls) == self._at:
            raise self._error("CUDA out of memory")
        return self._model(x).square().mean() + self.own.sum()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, TypeError])
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("kind", [steppe.SAM, steppe.SLSAM, steppe.LookSAM, steppe.recommended])
def test_what_broke_off_is_free_at_once(kind: Any, at: int, error: type[Exception]) -> None:
    """Who catches that memory is short, and tries fewer samples, had the first batch in memory until a collection."""
    model = nn.Linear(4, 2)
    sharp = kind(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1)

    def tried() -> weakref.ref[Tensor]:
        loss = Fails(model, error, at)
        with contextlib.suppress(error):
            sharp.backward(loss, torch.randn(8, 4))
            raise AssertionError("it did not break off")
        return weakref.ref(loss.own)

    gc.collect()
    gc.disable()
    try:
        assert tried()() is None
    finally:
        gc.enable()
