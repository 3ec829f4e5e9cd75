"""BAR's move: equal to a slow loop in numpy, its limits bit for bit, what must not change it, and what skips it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tests.lora import factors as f
from tests.problems import batches, loss_of, same
from torch import Tensor, nn

import steppe

CONSTANT: dict[str, Any] = {"schedule": "constant", "mu": 0.5}
RULES = ("nbar", "obar")


def moved(model: f.Net, batch: Any, scale: float = 1.0, **settings: Any) -> list[tuple[Tensor, Tensor]]:
    """The factors after the move alone: the optimizer's own step is taken out by an SGD that sees no gradient."""
    optimizer = torch.optim.SGD(f.trained(model), lr=0.1)
    steppe.BAR(model, optimizer, **(CONSTANT | settings))
    (loss_of(model)(batch) * scale).backward()
    optimizer.register_step_pre_hook(lambda *_: optimizer.zero_grad())  # after BAR's
    optimizer.step()
    return f.factors(model)


# The algorithm


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_slow_loop(rule: str, schedule: str) -> None:
    """Groups of different rates, a schedule of the rate, momentum, and steps beyond ``total_steps``."""
    model, rates, total, steps = f.products(), [0.02, 0.01, 0.02], 20, 30
    slow = f.slow(model, rule, 2.0, schedule, total, rates, steps)
    groups = [{"params": [x, y], "lr": r} for (_, x, y), r in zip(model.pairs(), rates, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    bar = steppe.BAR(model, optimizer, rule=rule, mu=2.0, schedule=schedule, total_steps=total, pairs=model.pairs())
    for _ in range(steps):
        bar.backward(model)
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
    assert bar.step == steps and len(bar) == 3
    for (_, x, y), (slow_x, slow_y) in zip(model.pairs(), slow, strict=True):
        torch.testing.assert_close(x.detach(), torch.from_numpy(slow_x), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(y.detach(), torch.from_numpy(slow_y), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_the_product_changes_by_one_minus_a_squared(rule: str) -> None:
    batch, before = next(batches(1)), f.factors(f.net())
    after = moved(f.net(), batch, rule=rule)
    a = 0.5 * 0.1
    for (x, y), (new_x, new_y) in zip(before, after, strict=True):
        torch.testing.assert_close(new_y @ new_x, (1 - a**2) * y @ x, rtol=1e-14, atol=1e-16)
        assert {round(float(new_x.norm() / x.norm()), 12), round(float(new_y.norm() / y.norm()), 12)} == {1 + a, 1 - a}


def test_the_rule_decides_who_grows() -> None:
    x, y = torch.full((2, 1), 3.0), torch.full((2, 1), 1.0)  # ||x|| > ||y||, and so ||g_x|| < ||g_y||
    for rule, grows in (("nbar", "y"), ("obar", "y")):
        assert _grown(x, y, rule) == grows
    for rule, grows in (("nbar", "x"), ("obar", "x")):
        assert _grown(y, x, rule) == grows
    for rule, grows in (("nbar", "x"), ("obar", "y")):  # of equal ones x counts as the larger
        assert _grown(y, y.clone(), rule) == grows


def test_the_rules_differ_where_gradients_and_factors_do() -> None:
    """x is larger and has the larger gradient: nbar lets it grow, obar lets it shrink."""
    model = nn.ParameterDict({"x": torch.full((3,), 2.0), "y": torch.full((3,), 1.0)})
    for rule, factor in (("nbar", 1.05), ("obar", 0.95)):
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        steppe.BAR(twin, optimizer, rule=rule, pairs=[("p", "x", "y")], **CONSTANT)
        twin["x"].grad, twin["y"].grad = torch.full((3,), 5.0), torch.full((3,), 0.5)
        optimizer.step()
        torch.testing.assert_close(twin["x"].detach(), 2.0 * torch.full((3,), factor) - 0.5)
        torch.testing.assert_close(twin["y"].detach(), torch.full((3,), 2.0 - factor) - 0.05)


def _grown(x: Tensor, y: Tensor, rule: str) -> str:
    model = f.Products([(x, y)], [torch.zeros(2, 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    steppe.BAR(model, optimizer, rule=rule, mu=100.0, schedule="constant", pairs=model.pairs())
    model().backward()
    optimizer.register_step_pre_hook(lambda *_: optimizer.zero_grad())
    optimizer.step()
    return "x" if model.x[0].norm() > x.norm() else "y"


# Limits and invariances, bit for bit


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_with_mu_0_it_is_the_base(base: Any) -> None:
    states = []
    for mu in (None, 0.0):
        model = f.net()
        optimizer = base(f.trained(model), lr=0.05)
        if mu is not None:
            steppe.BAR(model, optimizer, mu=mu, total_steps=5)
        train(model, optimizer, 8)
        states.append(f.copies(model))
    assert same(*states)


def test_after_total_steps_it_is_the_base() -> None:
    plain, regularised = f.net(), f.net()
    for model in (plain, regularised):
        optimizer = torch.optim.SGD(f.trained(model), lr=0.05)
        if model is regularised:
            bar = steppe.BAR(model, optimizer, total_steps=5)
            bar.load_state_dict(bar.state_dict() | {"step": 5})
        train(model, optimizer, 4)
    assert same(f.copies(plain), f.copies(regularised))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**16])
def test_the_loss_scale_does_not_matter(rule: str, scale: float) -> None:
    batch = next(batches(1))
    for (x, y), (x_2, y_2) in zip(moved(f.net(), batch, rule=rule), moved(f.net(), batch, scale, rule=rule),
                                  strict=True):  # fmt: skip
        assert torch.equal(x, x_2) and torch.equal(y, y_2)


def test_clipping_does_not_matter() -> None:
    batch, model = next(batches(1)), f.net()
    free = moved(f.net(), batch)
    optimizer = torch.optim.SGD(f.trained(model), lr=0.1)
    steppe.BAR(model, optimizer, **CONSTANT)
    loss_of(model)(batch).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.register_step_pre_hook(lambda *_: optimizer.zero_grad())
    optimizer.step()
    assert all(torch.equal(p, q) for one, two in zip(free, f.factors(model), strict=True)
               for p, q in zip(one, two, strict=True))  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_which_factor_is_called_x_does_not_matter(rule: str) -> None:
    batch, results = next(batches(1)), []
    for swapped in (False, True):
        model = f.net()
        found = [(n, y, x) if swapped else (n, x, y) for n, x, y in steppe.lora.lora_pairs(model)]
        results.append(moved(model, batch, rule=rule, pairs=found))
    assert all(torch.equal(a, b) for one, two in zip(*results, strict=True) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_accumulated_gradients_give_the_same_move(rule: str) -> None:
    x, y = next(batches(1))
    whole, pieces = f.net(), f.net()
    moves = []
    for model, micro in ((whole, [(x, y)]), (pieces, [(x[:4], y[:4]), (x[4:], y[4:])])):
        optimizer = torch.optim.SGD(f.trained(model), lr=0.1)
        bar = steppe.BAR(model, optimizer, rule=rule, **CONSTANT)
        loss = bar.backward(lambda b: loss_of(model)(b) / len(micro), micro_batches=micro)
        assert torch.equal(bar.last.loss, loss) and not bar.last.ascended
        optimizer.step()
        moves.append(f.copies(model))
    for name in moves[0]:
        torch.testing.assert_close(moves[0][name], moves[1][name], rtol=1e-12, atol=1e-14)


# What does not move


def test_the_rest_of_the_model_is_the_bases() -> None:
    plain, regularised, batch = f.net(), f.net(), next(batches(1))
    for model in (plain, regularised):
        optimizer = torch.optim.SGD(f.trained(model), lr=0.1)
        if model is regularised:
            steppe.BAR(model, optimizer, **CONSTANT)
        loss_of(model)(batch).backward()
        optimizer.step()
    before, after = f.copies(plain), f.copies(regularised)
    different = {n for n in before if not torch.equal(before[n], after[n])}
    assert different == {n for n in before if "lora" in n}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("gradient", [None, 0.0, math.nan, math.inf])
def test_a_pair_without_a_usable_gradient_stays(rule: str, gradient: float | None) -> None:
    model = f.net()
    optimizer = torch.optim.SGD(f.trained(model), lr=0.1)
    steppe.BAR(model, optimizer, rule=rule, **CONSTANT)
    loss_of(model)(next(batches(1))).backward()
    for p in model.first.parameters():
        p.grad = None if gradient is None else torch.full_like(p, gradient)
    before = f.factors(model)
    optimizer.register_step_pre_hook(lambda *_: optimizer.zero_grad())
    optimizer.step()
    after = f.factors(model)
    assert torch.equal(before[0][0], after[0][0]) and torch.equal(before[0][1], after[0][1])
    assert not torch.equal(before[1][0], after[1][0]) and not torch.equal(before[1][1], after[1][1])


def test_a_fresh_adapter_starts_to_move() -> None:
    """LoRA's start, B = 0: A's gradient is zero, B's is not. The pair moves, and the model's output does not."""
    model = f.net()
    nn.init.zeros_(model.first.lora_B["default"].weight)
    before = f.factors(model)[0]
    after = moved(model, next(batches(1)), rule="nbar")[0]
    torch.testing.assert_close(after[0], 0.95 * before[0])
    assert not after[1].any()


def test_a_step_without_a_gradient_counts_and_moves_nothing() -> None:
    model = f.net()
    optimizer = torch.optim.SGD(f.trained(model), lr=0.1)
    bar = steppe.BAR(model, optimizer, **CONSTANT)
    before = f.copies(model)
    with pytest.warns(UserWarning, match="none of the 2 pairs has a gradient at step 0"):
        optimizer.step()
    optimizer.step()  # said once
    assert bar.step == 2 and same(before, f.copies(model))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for batch in batches(steps, next(model.parameters()).dtype):
        loss_of(model)(batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_loaded_optimizer_s_rate_counts_from_the_next_step() -> None:
    """Loading exchanges the optimizer's groups; torch's distributed checkpoint steps once before it does."""
    for wanted in (0.05, 0.001):
        model = f.net()
        optimizer = torch.optim.SGD(f.trained(model), lr=0.1)
        steppe.BAR(model, optimizer, **CONSTANT)
        optimizer.register_step_pre_hook(lambda *_, o=optimizer: o.zero_grad())  # after BAR's: it alone moves
        batch = next(iter(batches(1)))
        loss_of(model)(batch).backward()
        optimizer.step()
        state = copy.deepcopy(optimizer.state_dict())
        state["param_groups"][0]["lr"] = wanted
        optimizer.load_state_dict(state)
        before = [(x.clone(), y.clone()) for x, y in f.factors(model)]
        loss_of(model)(batch).backward()
        optimizer.step()
        for (x, y), (x_before, y_before) in zip(f.factors(model), before, strict=True):
            for now, then in ((x, x_before), (y, y_before)):
                assert abs(float((now / then).mean()) - 1) == pytest.approx(CONSTANT["mu"] * wanted)
