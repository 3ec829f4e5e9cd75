"""The theory BAR rests on, in float64 and with steppe.SAM itself: what happens to the balancedness of pairs.

B = (||x||^2 - ||y||^2)/2 and, as a rate per unit of flow time, dB/dt = <y, d_y> - <x, d_x> along a direction d.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe.lora.balance import balancedness

A, DECAY = torch.diag(torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64)), (1.0, 0.8, 0.5)
START = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64)


class Toy(nn.Module):
    """``count`` pairs from the paper's start, or random ones; the loss is a function of the pairs."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], count: int = 1, seed: int | None = None) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed or 0)
        x = [START if seed is None else torch.randn(3, generator=draw, dtype=torch.float64) for _ in range(count)]
        y = [-3 * START if seed is None else torch.randn(3, generator=draw, dtype=torch.float64) * 2 for _ in x]
        self.x, self.y = (nn.ParameterList([nn.Parameter(v.clone()) for v in side]) for side in (x, y))
        self.loss = loss

    def forward(self) -> Tensor:
        parts = zip(self.x, self.y, strict=True)
        return sum(((i + 1) * self.loss(x, y) for i, (x, y) in enumerate(parts)), torch.zeros(()))

    def pairs(self) -> list[Any]:
        return [(f"pair{i}", x, y) for i, (x, y) in enumerate(zip(self.x, self.y, strict=True))]

    def balancedness(self) -> Tensor:
        return balancedness(steppe.lora.pairs.find_pairs(self, self.pairs()))

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        grads = torch.autograd.grad(self(), [*self.x, *self.y])
        return list(grads[: len(self.x)]), list(grads[len(self.x) :])


def nop(x: Tensor, y: Tensor, target: Tensor = A) -> Tensor:
    return (torch.outer(x, y) - target).square().sum()


def op(x: Tensor, y: Tensor, target: float = 0.5) -> Tensor:
    return (x @ y - target) ** 2


def rate_under_sam(model: Toy, rho: float) -> Tensor:
    """dB/dt of every pair in the flow along SAM's gradient."""
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.0), rho=rho)
    sharp.backward(model)
    parts = zip(model.x, model.y, strict=True)
    rates = torch.stack([(y * y.grad).sum() - (x * x.grad).sum() for x, y in parts]).detach()  # type: ignore[operator]
    model.zero_grad()
    return rates


def squares(sides: list[Tensor]) -> Tensor:
    return torch.stack([s.square().sum() for s in sides]).detach()


# Gradient descent keeps it


@pytest.mark.parametrize("loss", [nop, op])
def test_the_drift_under_gradient_descent_is_of_second_order(loss: Any) -> None:
    """One step changes B by eta^2 (||g_x||^2 - ||g_y||^2)/2 exactly: a quarter for half the rate, 0 in the flow."""
    for eta in (1e-2, 5e-3, 1e-4):
        model = Toy(loss, count=2, seed=1)
        before, (g_x, g_y) = model.balancedness(), model.gradients()
        optimizer = torch.optim.SGD(model.parameters(), lr=eta)
        model().backward()
        optimizer.step()
        drift = eta**2 * (squares(g_x) - squares(g_y)) / 2
        torch.testing.assert_close(model.balancedness() - before, drift, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("loss", [nop, op])
def test_over_a_fixed_time_of_the_flow_the_drift_vanishes_with_the_rate(loss: Any) -> None:
    drifts = []
    for steps in (50, 100, 200):
        model = Toy(loss)
        before = float(model.balancedness())
        descend(model, torch.optim.SGD(model.parameters(), lr=1.0 / steps), None, steps)
        drifts.append(abs(float(model.balancedness()) - before))
    assert drifts[0] < 0.2
    assert drifts[0] / drifts[1] == pytest.approx(2, rel=0.15) and drifts[1] / drifts[2] == pytest.approx(2, rel=0.1)


# SAM's rate, by its formulas


def nop_rate(model: Toy, rho: float) -> Tensor:
    g_x, g_y = (squares(g) for g in model.gradients())
    return rho * (g_x - g_y) / (g_x.sum() + g_y.sum()).sqrt()


def op_rate(model: Toy, rho: float) -> Tensor:
    """-2 rho |f'(x'y)| B / sqrt(||x||^2 + ||y||^2), of a single pair."""
    x, y = model.x[0].detach(), model.y[0].detach()
    slope = abs(float(2 * (x @ y - 0.5)))
    return -2 * rho * slope * model.balancedness() / (x.square().sum() + y.square().sum()).sqrt()


CASES = [(nop, nop_rate, 1), (op, op_rate, 1), (nop, nop_rate, 4), (op, nop_rate, 4)]


@pytest.mark.parametrize(("loss", "formula", "count"), CASES, ids=["NOP", "OP", "4 NOP pairs", "4 OP pairs"])
@pytest.mark.parametrize("seed", [None, 2, 3])
def test_sams_rate_is_the_formulas_and_its_error_falls_as_rho_squared(
    loss: Any, formula: Any, count: int, seed: int | None
) -> None:
    errors = []
    for rho in (1e-2, 5e-3, 2.5e-3):
        model = Toy(loss, count, seed)
        expected = formula(model, rho)
        errors.append(float((rate_under_sam(model, rho) - expected).abs().max()))
        assert errors[-1] < 0.2 * float(expected.abs().max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15) and errors[1] / errors[2] == pytest.approx(4, rel=0.15)


def test_one_pair_among_many_moves_less_under_sam_and_as_much_under_bar() -> None:
    """The root runs over all pairs: of D alike, SAM moves each sqrt(D) times less than one alone. BAR acts per pair."""
    rates, moves = {}, {}
    for count in (1, 9):
        model = Toy(lambda x, y: nop(x, y), count)
        model.forward = lambda m=model: sum(nop(x, y) for x, y in zip(m.x, m.y, strict=True))  # type: ignore[method-assign]
        rates[count], moves[count] = rate_under_sam(model, 1e-4)[0], bar_move(model, "nbar")[0]
    assert float(rates[1] / rates[9]) == pytest.approx(3, rel=1e-3)
    assert float(moves[1]) == pytest.approx(float(moves[9]), rel=1e-12)


def bar_move(model: Toy, rule: str, a: float = 1e-3) -> Tensor:
    """The change of B by BAR alone (the base's own step sees no gradient)."""
    before = model.balancedness()
    optimizer = torch.optim.SGD(model.parameters(), lr=a)
    steppe.BAR(model, optimizer, rule=rule, mu=1.0, schedule="constant", pairs=model.pairs())
    model().backward()
    optimizer.register_step_pre_hook(lambda *_: optimizer.zero_grad())
    optimizer.step()
    return model.balancedness() - before


@pytest.mark.parametrize("seed", range(5))
def test_bar_moves_the_balancedness_where_sam_does(seed: int) -> None:
    """nBAR has the sign of SAM's rate on NOP pairs, oBAR on OP pairs, and the length a (||x||^2 + ||y||^2)."""
    for loss, rule, count in ((nop, "nbar", 4), (op, "obar", 1)):
        model = Toy(loss, count, seed)
        rate, lengths = rate_under_sam(model, 1e-4), squares(list(model.x)) + squares(list(model.y))
        move = bar_move(model, rule)
        assert torch.equal(move.sign(), rate.sign())
        torch.testing.assert_close(move.abs(), 1e-3 * lengths, rtol=2e-3, atol=0.0)


# Noise


def descend(model: Toy, optimizer: torch.optim.Optimizer, sharp: Any, steps: int, noise: float = 0.0) -> None:
    """Train against a target that is drawn anew at each step."""
    draw = torch.Generator().manual_seed(5)
    for _ in range(steps):
        gaussian = torch.randn(3, 3, generator=draw, dtype=torch.float64)
        target: Any = A + noise * torch.diag(torch.tensor(DECAY, dtype=torch.float64)) @ gaussian
        target = target if model.loss is nop else 0.5 + noise * gaussian[0, 0]

        def closure(target: Any = target) -> Tensor:
            return model.loss(model.x[0], model.y[0], target)  # type: ignore[call-arg]

        closure().backward() if sharp is None else sharp.backward(closure)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("loss", "rho", "rate"), [(nop, 0.1, 4e-3), (op, 0.2, 4e-3)], ids=["NOP", "OP"])
def test_more_noise_balances_faster_under_sam_and_not_at_all_without(loss: Any, rho: float, rate: float) -> None:
    """The paper's toy problems, with forty times its learning rate: time in the flow is what counts."""
    left = {}
    for noise in (0.0, 1.0, 2.0):
        model = Toy(loss)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        descend(model, optimizer, steppe.SAM(model, optimizer, rho=rho), 175, noise)
        left[noise] = abs(float(model.balancedness()))
    assert left[2.0] < left[1.0] < left[0.0]
    assert left[2.0] < 0.8 * left[0.0]

    plain = Toy(loss)
    before = float(plain.balancedness())
    descend(plain, torch.optim.SGD(plain.parameters(), lr=rate / 4), None, 700, 2.0)
    assert abs(float(plain.balancedness()) - before) < 0.1 * (left[0.0] - left[2.0])


@pytest.mark.parametrize(("loss", "rule"), [(nop, "nbar"), (nop, "obar"), (op, "nbar"), (op, "obar")])
def test_bar_balances_the_toy_problems(loss: Any, rule: str) -> None:
    model = Toy(loss)
    before = abs(float(model.balancedness()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    steppe.BAR(model, optimizer, rule=rule, mu=1.0, schedule="constant", pairs=model.pairs())
    descend(model, optimizer, None, 500, 1.0)
    assert abs(float(model.balancedness())) < 0.5 * before
