"""A linear model beside the networks: what the inputs tell by themselves, as a baseline that costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steppe.compare.data.examples import Split

DECAY, STEPS = 1e-3, 200


def linear(train: Split, classes: int) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression: min_W mean cross-entropy of W z + b, plus DECAY/2 ||W||^2, z the scaled inputs.

    Inputs have mean 0 and deviation 1 in `train`. It is convex, begins at 0 and is fitted by L-BFGS at the first call:
    nothing is drawn, and nothing is chosen. What comes is a row for :class:`steppe.compare.Task`.
    """

    @cache
    def fitted() -> tuple[nn.Linear, Tensor, Tensor]:
        x = train.x.flatten(1).float()
        mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
        return _fit((x - mean) / deviation, train.y, classes), mean, deviation

    def scores(x: Tensor) -> Tensor:
        model, mean, deviation = fitted()
        z = (x.flatten(1).float() - mean.to(x.device)) / deviation.to(x.device)
        return nn.functional.linear(z, model.weight.detach().to(x.device), model.bias.detach().to(x.device))

    return scores


def _fit(z: Tensor, y: Tensor, classes: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):  # what it begins with is overwritten
        model = nn.Linear(z.shape[1], classes)
    for weight in model.parameters():
        nn.init.zeros_(weight)
    solver = torch.optim.LBFGS(model.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        found = cross_entropy(model(z), y) + DECAY / 2 * model.weight.square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        solver.step(loss)
    return model
