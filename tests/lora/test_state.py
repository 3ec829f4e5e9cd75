"""BAR beside a checkpoint: resumed equals uninterrupted, bit for bit; what is refused; one BAR for each pair."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lora import factors as f
from tests.problems import batches, loss_of, same
from torch import nn

import steppe


def build(dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, steppe.BAR]:
    model = f.net(dtype)
    optimizer = torch.optim.AdamW(f.trained(model), lr=0.02)
    return model, optimizer, steppe.BAR(model, optimizer, **({"mu": 2.0, "total_steps": 20} | settings))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for t, batch in enumerate(batches(stop, next(model.parameters()).dtype)):
        if t >= start:
            loss_of(model)(batch).backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"rule": "obar", "schedule": "cosine"}, {"schedule": "constant"}])
def test_resumed_equals_uninterrupted(settings: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    """A new process; rounding draws go on too."""
    whole, optimizer, _ = build(dtype, **settings)
    train(whole, optimizer, 0, 12)

    model, optimizer, bar = build(dtype, **settings)
    train(model, optimizer, 0, 7)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "bar": bar.state_dict()}
    torch.save(saved, tmp_path / "all.pt")
    model, optimizer, bar = build(dtype, **settings)
    loaded = torch.load(tmp_path / "all.pt", weights_only=True)
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    bar.load_state_dict(loaded["bar"])
    train(model, optimizer, 7, 12)
    assert bar.step == 12 and same(f.copies(whole), f.copies(model))


def test_the_state_is_json() -> None:
    state = build(total_steps=20)[2].state_dict()
    assert json.loads(json.dumps(state)) == state
    assert state["pairs"] == ["first.default", "second.default"] and state["step"] == 0


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"format": 2}, "not the state of a steppe.BAR"),
    ({"more": 1}, "not the state of a steppe.BAR"),
    ({"step": -1}, "step=-1"),
    ({"step": 1.5}, "step=1.5"),
    ({"pairs": ["first.default"]}, "is of 1 pairs, the model has 2"),
    ({"pairs": ["second.default", "first.default"]}, "is of 2 pairs"),
    ({"rule": "sam"}, "expected one of 'nbar', 'obar'"),
    ({"mu": -1}, "mu=-1"),
    ({"total_steps": None}, "needs total_steps"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[str(c) for c, _ in BROKEN])
def test_a_state_that_does_not_fit_changes_nothing(change: dict[str, Any], message: str) -> None:
    bar = build()[2]
    before = bar.state_dict()
    with pytest.raises(ValueError, match=message):
        bar.load_state_dict(before | {"mu": 0.7} | change)
    assert bar.state_dict() == before


def test_a_state_of_another_kind_is_refused() -> None:
    model, optimizer, bar = build()
    for state in (steppe.SAM(model, optimizer).state_dict(), {}, None, [1]):
        with pytest.raises(ValueError, match="not the state of a steppe.BAR"):
            bar.load_state_dict(state)  # type: ignore[arg-type]


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"rule": "bar"}, "rule='bar'"),
    ({"mu": -0.1}, "mu=-0.1"),
    ({"mu": float("nan")}, "mu=nan"),
    ({"mu": float("inf")}, "mu=inf"),
    ({"mu": "0.5"}, "mu='0.5'"),
    ({"mu": True}, "mu=True"),
    ({"schedule": "step"}, "schedule='step'"),
    ({"schedule": "linear", "total_steps": None}, "schedule='linear' needs total_steps"),
    ({"schedule": "cosine", "total_steps": None}, "schedule='cosine' needs total_steps"),
    ({"total_steps": 0}, "total_steps=0"),
    ({"total_steps": 2.5}, "total_steps=2.5"),
    ({"seed": 0.5}, "seed=0.5"),
    ({"rounding": "down"}, "rounding='down'"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=[m for _, m in SETTINGS])
def test_bad_settings_are_refused_in_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        build(**settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_hosts_are_refused() -> None:
    model = f.net()
    with pytest.raises(TypeError, match="optimizer is of class list"):
        steppe.BAR(model, f.trained(model), total_steps=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model is a list"):
        steppe.BAR(f.trained(model), torch.optim.SGD(f.trained(model)), total_steps=3)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(f.trained(model), lr=0.1)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ValueError, match=r"lr=None.*expected a number"):
        steppe.BAR(model, optimizer, total_steps=3)


def test_a_factor_that_would_change_its_sign_is_refused_before_anything_moves() -> None:
    model, optimizer, bar = build(mu=50.0)
    loss_of(model)(next(batches(1))).backward()
    before = f.copies(model)
    with pytest.raises(ValueError, match=r"a = alpha \* lr = 1 at step 0; expected less than 1"):
        optimizer.step()
    assert same(before, f.copies(model)) and bar.step == 0


# One BAR for each pair


def test_it_says_how_many_pairs() -> None:
    bar = build()[2]
    assert len(bar) == 2 and "pairs=2" in repr(bar) and repr(bar).startswith("BAR(rule='nbar', mu=2.0")


def test_it_lives_with_the_optimizer_and_leaves_on_remove() -> None:
    model, optimizer, bar = build()
    state = bar.state_dict
    del bar  # one line without a name is enough
    train(model, optimizer, 0, 3)
    assert state()["step"] == 3
    state.__self__.remove()  # type: ignore[attr-defined]
    plain = f.net()
    base = torch.optim.AdamW(f.trained(plain), lr=0.02)
    plain.load_state_dict(model.state_dict())
    base.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3, 5)
    train(plain, base, 3, 5)
    assert same(f.copies(plain), f.copies(model)) and state()["step"] == 3


def test_a_new_one_of_the_same_pairs_takes_over() -> None:
    """A cell that is run again, a second training: the move is not made twice."""
    once, twice = f.net(), f.net()
    for model, times in ((once, 1), (twice, 2)):
        optimizer = torch.optim.SGD(f.trained(model), lr=0.1)
        bars = [steppe.BAR(model, optimizer, total_steps=9) for _ in range(times)]
        train(model, optimizer, 0, 2)
        assert bars[-1].step == 2
    assert bars[0].step == 0 and same(f.copies(once), f.copies(twice))


def test_two_of_different_pairs_live_together_and_overlapping_ones_do_not() -> None:
    model, optimizer, bar = build()
    bar.remove()
    names = [(n, f"{n}.lora_A.default.weight", f"{n}.lora_B.default.weight") for n in ("first", "second")]
    bars = [steppe.BAR(model, optimizer, total_steps=9, pairs=[name]) for name in names]
    train(model, optimizer, 0, 2)
    assert [b.step for b in bars] == [2, 2]
    crossed = [("x", names[0][1], "head.bias")]
    with pytest.raises(ValueError, match="another BAR balances some of these pairs"):
        steppe.BAR(model, optimizer, total_steps=9, pairs=crossed)


def test_a_group_that_is_added_later() -> None:
    """The rate of a pair is its own group's, also when groups change under way."""
    model = f.net()
    optimizer = torch.optim.SGD(f.trained(model.first) + f.trained(model.second), lr=0.1)
    bar = steppe.BAR(model, optimizer, schedule="constant")
    train(model, optimizer, 0, 2)
    optimizer.add_param_group({"params": f.trained(model.head), "lr": 0.2})
    train(model, optimizer, 2, 4)
    assert bar.step == 4 and len(optimizer.param_groups) == 2
