"""A method of your own: one new part, one recipe, no other file touched.

SignRST perturbs along the sign of the gradient, so that every weight moves by the same amount, and ascends
with a probability that rises in a straight line: cheap while the loss falls fast, thorough at the end.

    v = sign(g);  eps = rho v / ||v||
    with probability p(t) = t / T:  d = gradient at w + eps;  otherwise d = g
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import steppe
from steppe.ascent import Direction
from steppe.curves import Linear

Grads = dict[str, Tensor]


@dataclass(frozen=True)
class Sign(Direction):
    """v = sign(g)."""

    def __call__(
        self, grads: Grads, memory: dict[str, Any], scale: Tensor | float = 1.0
    ) -> tuple[Grads, dict[str, Any]]:
        return {name: grad.sign() for name, grad in grads.items()}, {}


def SignRST(  # noqa: N802  (a recipe is named like the method)
    model: nn.Module, optimizer: torch.optim.Optimizer, *, rho: float = 0.05, total_steps: int, seed: int = 0
) -> steppe.SharpnessAware:
    """The recipe: which parts answer when, how, and what to hand on."""
    return steppe.SharpnessAware(
        model,
        optimizer,
        ascent=steppe.Ascent(rho=rho, direction=Sign()),
        schedule=steppe.Bernoulli(p=Linear(0.0, 1.0, total_steps)),
        combine=steppe.Replace(),
        seed=seed,
    )


def main() -> None:
    steps, rho = 200, 0.05
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    x = torch.randn(128, 4)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sharp = SignRST(model, optimizer, rho=rho, total_steps=steps)

    losses, ascents = [], []
    for _ in range(steps):
        losses.append(float(sharp.backward(lambda: nn.functional.mse_loss(model(x), y))))
        ascents.append(sharp.last.ascended)
        optimizer.step()
        optimizer.zero_grad()

    nn.functional.mse_loss(model(x), y).backward()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    with sharp.perturbed():
        moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    first, second = sum(ascents[: steps // 2]), sum(ascents[steps // 2 :])
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; ascents in each half: {first}, {second}")
    print(f"weights move by {moved.abs().min():.1e} to {moved.abs().max():.1e}, in all {moved.norm():.4f}")
    assert losses[-1] < losses[0] / 2
    assert first < second
    assert abs(float(moved.norm()) - rho) < 1e-5


if __name__ == "__main__":
    main()
