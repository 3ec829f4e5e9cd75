"""What the second pass on chosen samples cannot work with: one sentence, at the earliest point."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.problems import BATCH, loss_of, losses_of, make, net

import steppe
from steppe._batch import NOTHING
from steppe._hardest import PerSample
from steppe.integrations.closure import SharpOptimizer


def built() -> tuple[Any, steppe.SharpnessAware]:
    model = net()
    return model, make(model, hardest=0.5)[1]


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "the mean": (lambda m, b: losses_of(m)(b).mean(), r'shape \(\); expected one loss per.*reduction="none"'),
    "too few": (lambda m, b: losses_of(m)(b)[:3], r"shape \(3,\); expected one loss per sample, shape \(8,\)"),
    "two to each": (lambda m, b: m(b[0]), r"shape \(8, 3\); expected one loss per sample"),
    "a number": (lambda m, b: 1.0, "returned float; expected a tensor with one loss per sample"),
    "no graph": (lambda m, b: losses_of(m)(b).detach(), "no graph behind it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_losses_are_refused_in_one_sentence(case: str) -> None:
    wrong, message = REFUSED[case]
    model, sharp = built()
    with pytest.raises((TypeError, ValueError), match=message) as error:
        sharp.backward(lambda b: wrong(model, b), BATCH)
    assert "\n" not in str(error.value)


def test_a_closure_alone_and_the_phases_are_refused() -> None:
    model, sharp = built()
    with pytest.raises(TypeError, match=r"given a closure; expected backward\(loss_of, batch\)"):
        sharp.backward(lambda: losses_of(model)(BATCH))
    sharp.mark()
    loss_of(model)(BATCH).backward()
    with pytest.raises(RuntimeError, match=r"ascend\(\) cannot slice a batch.*neither look nor hardest"):
        sharp.ascend()


BAD: list[dict[str, Any]] = [
    {"hardest": 0}, {"hardest": -0.5}, {"hardest": 1.5}, {"hardest": "half"}, {"hardest": True},
    {"hardest": float("nan")}, {"hardest": 0.5, "look": steppe.Look(2)},
    {"hardest": 0.5, "look": steppe.Look(view=steppe.views.Length(0.5))},
    {"hardest": 0.5, "look": steppe.Look(autocast=torch.bfloat16)},
    {"hardest": 1.0, "ascent": steppe.Ascent(direction=steppe.Momentum())},
]  # fmt: skip


@pytest.mark.parametrize("settings", BAD, ids=str)
def test_bad_settings_are_refused_in_one_sentence(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="hardest=.* was given.*; expected") as error:
        make(net(), **settings)
    assert "\n" not in str(error.value)


def test_losses_per_sample_are_refused_where_nobody_asked_for_them() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"shape \(8,\); expected one element: take its mean"):
        make(model)[1].backward(losses_of(model), BATCH)
    assert not make(model)[1].needs.per_sample and make(model, hardest=1.0)[1].needs.per_sample
    with pytest.raises(TypeError, match="given a closure"):
        PerSample.of(lambda: torch.ones(6), NOTHING, None, None)


def test_bar_asks_for_the_mean() -> None:
    model = net()
    pairs = [("one", model.first.weight, model.last.weight)]
    bar = steppe.BAR(model, torch.optim.SGD(model.parameters(), lr=0.1), schedule="constant", pairs=pairs)
    with pytest.raises(ValueError, match=r"shape \(8,\); expected one element: take its mean"):
        bar.backward(losses_of(model), BATCH)


def test_the_closure_adapter_refuses_it_when_built() -> None:
    with pytest.raises(ValueError, match="one loss per sample .*SharpOptimizer has the mean loss only"):
        SharpOptimizer(built()[1])


def test_the_trainer_refuses_it_before_the_first_step() -> None:
    pytest.importorskip("transformers")
    from steppe.integrations._trainer import build

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = SimpleNamespace(optimizer=optimizer, model=model, model_wrapped=model)
    assert build(steppe.SAM, trainer)
    with pytest.raises(ValueError, match="one loss per sample .*the Trainer has the mean loss only.*expected a method"):
        build(steppe.ESAM, trainer)
