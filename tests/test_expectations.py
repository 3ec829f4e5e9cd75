"""Means over seeds and steps: the gradient of G-RST, the share of SAM steps of each schedule, the coins."""

import math

import numpy as np
import pytest
import torch
from tests import reference
from tests.bowl import G_TILDE, RHO, G, Tensors, W, bowl, bowl_loss

import steppe
from steppe.schedule import uniform


@pytest.mark.parametrize(("p", "kappa"), [(0.5, 1.0), (0.25, 0.6), (0.8, 1.5)])
def test_mean_gradient_of_grst_over_seeds(p, kappa):
    """E[d] = (1 - kappa) g + kappa g~, with the standard error of the mean of n Bernoulli draws."""
    n = 150
    model, optimizer = bowl()
    total, ascents = torch.zeros_like(W), 0
    for seed in range(n):
        sharp = steppe.GRST(model, optimizer, rho=RHO, p=p, kappa=kappa, total_steps=10, seed=seed)
        sharp.backward(bowl_loss(model))
        total += model.w.grad
        ascents += sharp.last.ascended
        model.zero_grad()
    expected = (1 - kappa) * G + kappa * G_TILDE
    error = kappa / p * math.sqrt(p * (1 - p) / n) * (G_TILDE - G).abs()
    assert bool(((total / n - expected).abs() <= 3 * error).all())
    assert bool((3 * error < 0.5 * kappa * (G_TILDE - G).abs()).all())  # the base's gradient would not pass
    assert 0 < ascents < n


@pytest.mark.parametrize("schedule", ["linear2", "trigonometric", "piecewise3"])
def test_mean_gradient_of_grst_over_the_steps_of_a_schedule(schedule):
    """gamma = kappa / p(t) holds the degree while p(t) changes; the weights rest, as lr is 0."""
    steps, p, kappa = 60, 0.3, 1.0
    model = Tensors(w=W)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    more = {"p_end": 0.8} if schedule == "trigonometric" else {}
    total, variance, runs = torch.zeros_like(W), 0.0, 4
    for seed in range(runs):
        sharp = steppe.GRST(
            model, optimizer, rho=RHO, p=p, kappa=kappa, schedule=schedule, total_steps=steps,
            gamma_max=1e9, seed=seed, **more,
        )  # fmt: skip
        for t in range(steps):
            sharp.backward(bowl_loss(model))
            total += model.w.grad
            chance = reference.probability(schedule, t, steps, p, more.get("p_end"))
            variance += (kappa / chance) ** 2 * chance * (1 - chance)
            optimizer.step(), optimizer.zero_grad()
    n = runs * steps
    expected = (1 - kappa) * G + kappa * G_TILDE
    error = math.sqrt(variance) / n * (G_TILDE - G).abs()
    assert bool(((total / n - expected).abs() <= 3 * error).all())
    assert bool((3 * error < 0.5 * (G_TILDE - G).abs()).all())


def share(schedule, p, p_end=None):
    """The mean share of SAM steps that the paper states, for an endless run."""
    return {"piecewise1": 1 - p, "piecewise3": 0.5, "linear2": 0.5}.get(schedule) or (
        (p + p_end) / 2 if schedule == "trigonometric" else p
    )


SHARES = [
    ("constant", 0.3), ("piecewise1", 0.3), ("piecewise2", 0.3), ("piecewise3", 0.2), ("linear1", 0.3),
    ("linear1", 0.7), ("linear2", 0.1), ("trigonometric", 0.1),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "p"), SHARES)
def test_mean_share_of_sam_steps(schedule, p):
    """The sum of p(t) is the stated share up to O(1/T), and the draws lie within their binomial error."""
    steps = 200
    p_end = 0.7 if schedule == "trigonometric" else None
    chances = [reference.probability(schedule, t, steps, p, p_end) for t in range(steps)]
    assert abs(np.mean(chances) - share(schedule, p, p_end)) <= 2 / steps
    model = Tensors(w=torch.tensor([1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sharp = steppe.RST(model, optimizer, rho=RHO, p=p, schedule=schedule, p_end=p_end, total_steps=steps, seed=1)
    ascents = []
    for _ in range(steps):
        sharp.backward(lambda: model.w.square().sum())
        ascents.append(sharp.last.ascended)
        optimizer.step(), optimizer.zero_grad()
    spread = math.sqrt(sum(c * (1 - c) for c in chances)) / steps
    assert abs(np.mean(ascents) - np.mean(chances)) <= 3 * spread + 1e-12
    assert ascents == [reference.coin(1, t) < c for t, c in enumerate(chances)]


def test_the_coins_are_uniform_and_independent_of_each_other():
    """10,000 coins: mean, spread, correlation of neighbouring steps and seeds, to 4 standard errors."""
    coins = np.array([[uniform(seed, t) for t in range(100)] for seed in range(100)])
    n = coins.size
    assert abs(coins.mean() - 0.5) <= 4 * math.sqrt(1 / 12 / n)
    assert abs(coins.var() - 1 / 12) <= 4 * math.sqrt(1 / 180 / n)
    for a, b in [(coins[:, 1:], coins[:, :-1]), (coins[1:], coins[:-1])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) <= 4 / math.sqrt(n)
    assert all(uniform(s, t) == reference.coin(s, t) for s in (0, 7, 2**40) for t in (0, 1, 10**6))
