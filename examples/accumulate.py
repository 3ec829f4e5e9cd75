"""Gradient accumulation, two ways that differ for a sharpness-aware method.

`backward(loss_of, micro_batches=[...])` gives the exact gradient of the accumulated batch: one perturbation,
made from the sum. `backward` once for each micro-batch gives m-sharpness: each has a perturbation of its own.
"""

from collections.abc import Callable

import torch
from torch import nn

import steppe


def gradient(model: nn.Module, run: Callable[[steppe.SharpnessAware], None]) -> torch.Tensor:
    """The gradient that `run` leaves, as one vector."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(steppe.SAM(model, optimizer, rho=0.5))
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.zero_grad()
    return found


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    x, y = torch.randn(64, 8, dtype=torch.float64), torch.randn(64, 1, dtype=torch.float64)
    micro_batches = list(zip(x.split(16), y.split(16), strict=True))

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        # The losses of the micro-batches add up to that of the whole batch.
        return nn.functional.mse_loss(model(inputs), targets, reduction="sum") / len(x)

    def one_by_one(sharp: steppe.SharpnessAware) -> None:
        for batch in micro_batches:
            sharp.backward(loss_of, batch)

    whole = gradient(model, lambda sharp: sharp.backward(loss_of, (x, y)))
    exact = gradient(model, lambda sharp: sharp.backward(loss_of, micro_batches=micro_batches))
    per_micro_batch = gradient(model, one_by_one)

    def distance(other: torch.Tensor) -> float:
        return float((other - whole).norm() / whole.norm())

    print(f"micro_batches=[...]     differs from the whole batch by {distance(exact):.1e}")
    print(f"backward on each        differs from the whole batch by {distance(per_micro_batch):.1e}")
    assert distance(exact) < 1e-12
    assert distance(per_micro_batch) > 1e-3


if __name__ == "__main__":
    main()
