"""A state of another method is refused; a changed setting holds from the resume on, with one warning that names it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.problems import batches, loss_of, losses_of, net
from torch import nn

import steppe
from steppe import curves
from steppe.methods import METHODS

Make = Callable[[nn.Module, torch.optim.Optimizer], Any]
NAMES = [name for name, row in METHODS.items() if not row.lora]


def build(make: Make, name: str = "sam") -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = net()
    base = METHODS[name].optimizer or (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    optimizer = base(model.parameters())
    return model, optimizer, make(model, optimizer)


def advance(built: tuple[nn.Module, torch.optim.Optimizer, Any], start: int, stop: int) -> list[bool]:
    model, optimizer, sharp = built
    ascended = []
    for t, batch in enumerate(batches(stop)):
        if t >= start:
            torch.manual_seed(t)
            f = losses_of(model) if sharp.needs.per_sample else loss_of(model)
            sharp.backward(f, batch)
            ascended.append(sharp.last.ascended)
            optimizer.step()
            optimizer.zero_grad()
    return ascended


def resumed(saved: Make, now: Make, steps: int = 4, name: str = "sam") -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """What is built as ``now``, on the state that ``saved`` left after some steps."""
    old, new = build(saved, name), build(now, name)
    advance(old, 0, steps)
    for target, source in zip(new, old, strict=True):
        target.load_state_dict(copy.deepcopy(source.state_dict()))
    return new


def recipe(name: str, **settings: Any) -> Make:
    row = METHODS[name]
    return lambda model, optimizer: row.recipe(model, optimizer, **(dict(row.good[0]) | settings))


OTHERS: list[tuple[str, str]] = [
    ("sam", "look_sam"), ("look_sam", "sam"), ("rst", "sam"), ("sam", "rst"), ("sam", "asam"), ("sam", "layer_sam"),
    ("sam", "sam_on"), ("sam", "gsam"), ("gsam", "wsam"), ("sam", "fsam"), ("fsam", "sam"), ("rst", "late_sam"),
    ("rst", "grst"), ("sam", "msam"), ("msam", "s2_sam"), ("sam", "sl_sam"), ("sl_sam", "sam"), ("aesam", "rst"),
    ("look_sam", "look_layer_sam"), ("sam", "gnp"),
]  # fmt: skip


@pytest.mark.parametrize(("saved", "here"), OTHERS)
def test_a_state_of_another_method_is_refused_and_changes_nothing(saved: str, here: str) -> None:
    state = build(recipe(saved))[2].state_dict()
    sharp = build(recipe(here))[2]
    before = (repr(sharp), copy.deepcopy(sharp.state_dict()))
    with pytest.raises(ValueError, match="the state is of another method: .* build the method that was saved"):
        sharp.load_state_dict(state)
    assert repr(sharp) == before[0] and str(sharp.state_dict()) == str(before[1])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_settings_are_no_change(name: str, recwarn: pytest.WarningsRecorder) -> None:
    resumed(recipe(name), recipe(name), name=name)
    assert not [w for w in recwarn if "settings differ" in str(w.message)]


CHANGED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "k": ("look_sam", {"k": 5}, {"k": 2}, r"schedule.interval (k) was 5 and is 2"),
    "alpha": ("look_sam", {"alpha": 0.7}, {"alpha": 0.1}, "combine.alpha was 0.7 and is 0.1"),
    "rho": ("sam", {"rho": 0.05}, {"rho": 0.2}, "ascent.rho was 0.05 and is 0.2"),
    "rho curve": ("sam", {"rho": 0.05}, {"rho": curves.Linear(0.1, 0.0, 9)}, "ascent.rho was 0.05 and is Linear("),
    "p": ("rst", {"p": 0.5}, {"p": 1.0}, "schedule.p was 0.5 and is 1.0"),
    "gamma": ("gnp", {"gamma": 0.8}, {"gamma": 0.3}, "combine.gamma was 0.8 and is 0.3"),
    "seed": ("rst", {"seed": 0}, {"seed": 4}, "seed was 0 and is 4"),
    "masks": ("sam", {}, {"same_dropout": False}, "same_dropout was True and is False"),
    "average": ("fsam", {}, {"decay": 0.5}, "ascent.direction.decay was 0.9 and is 0.5"),
    "length": ("aesam", {"total_steps": 4}, {"total_steps": 40}, "schedule.total_steps was 4 and is 40"),
    "samples": ("rst", {"samples": None}, {"samples": 2}, "samples was None and is 2"),
    "step size": ("sl_sam", {}, {"step_size": 0.5}, "select.step_size was 0.001 and is 0.5"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_changed_setting_is_named_and_holds_from_here_on(what: str) -> None:
    """As if it had been changed in the running object: the same weights, bit for bit."""
    name, before, after, words = CHANGED[what]
    with pytest.warns(UserWarning, match=re.escape(words)) as caught:
        new = resumed(recipe(name, **before), recipe(name, **after))
    assert len([w for w in caught if "settings differ" in str(w.message)]) == 1

    live, fresh = build(recipe(name, **before)), build(recipe(name, **after))[2]
    advance(live, 0, 4)
    for part in ("ascent", "look", "schedule", "combine", "hardest", "seed", "same_dropout"):
        setattr(live[2], part, getattr(fresh, part))
    live[2]._selection.select = fresh.select
    assert advance(live, 4, 9) == advance(new, 4, 9)
    assert all(torch.equal(v, new[0].state_dict()[k]) for k, v in live[0].state_dict().items())


def test_several_changes_are_one_warning() -> None:
    with pytest.warns(UserWarning, match=r"ascent.rho was .* and is .*; schedule.interval \(k\) was") as caught:
        resumed(recipe("look_sam", rho=0.1, k=2), recipe("look_sam", rho=0.2, k=3))
    assert len(caught) == 1


def test_words_are_another_method() -> None:
    with pytest.raises(ValueError, match="combine.push is 'guarded' there and 'natural' here"):
        resumed(recipe("look_sam", alpha=0.7), lambda m, o: steppe.LookSAM(m, o, push="natural"))


def test_other_units_of_a_selection_are_refused() -> None:
    with pytest.raises(ValueError, match="another method: select.level is 'tensor' there and 'block' here"):
        resumed(recipe("sl_sam"), recipe("sl_sam", level="block"))
    one, other = (lambda n: n[:1]), (lambda n: n[:3])
    with pytest.raises(ValueError, match="of other units"):
        resumed(recipe("sl_sam", level=one), recipe("sl_sam", level=other))


@pytest.mark.parametrize("method", ["nbar", "obar"])
def test_bar_refuses_the_other_rule_and_names_what_changed(method: str) -> None:
    pairs = {"rare.weight": "last.weight"}
    bars = [build(lambda m, o, r=r: steppe.BAR(m, o, rule=r, pairs=pairs, total_steps=9))[2] for r in ("nbar", "obar")]
    mine, other = bars if method == "nbar" else bars[::-1]
    with pytest.raises(ValueError, match="of another method: rule is"):
        mine.load_state_dict(other.state_dict())
    with pytest.warns(UserWarning, match=r"mu was 0.1 and is 0.5; seed was 7 and is 0"):
        mine.load_state_dict(mine.state_dict() | {"mu": 0.1, "seed": 7})
    assert mine.mu == 0.5 and mine.seed == 0
