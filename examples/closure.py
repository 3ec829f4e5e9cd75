"""A loop that calls `optimizer.step(closure)` and cannot be changed: three lines where the optimizer is made.

The same adapter takes the two-step loop of davda54/sam as it is; `first_step` tells when a second pass would be wasted.
"""

from collections.abc import Callable

import torch
from torch import nn

import steppe
from steppe.integrations.closure import SharpOptimizer  # changed 1: added

Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[Batch], torch.Tensor]
STEPS = 60


def foreign_fit(loss_of: Loss, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> None:
    """Somebody else's loop, by torch's contract for closures."""
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()


def two_step_fit(loss_of: Loss, optimizer: SharpOptimizer, batches: list[Batch]) -> int:
    """The loop of davda54/sam, with one `if`; returns the number of passes."""
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    passes = 0
    for batch in batches:
        loss_of(batch).backward()
        passes += 1
        if optimizer.first_step(zero_grad=True):
            loss_of(batch).backward()
            passes += 1
        optimizer.second_step(zero_grad=True)
        scheduler.step()
    return passes


def build() -> tuple[nn.Module, SharpOptimizer, Loss]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sharp = steppe.LookSAM(model, optimizer, rho=0.05, k=5, alpha=0.1)  # changed 2: added
    optimizer = SharpOptimizer(sharp)  # changed 3: added
    return model, optimizer, lambda batch: nn.functional.mse_loss(model(batch[0]), batch[1])


def main() -> None:
    generator = torch.Generator().manual_seed(1)
    draw = (torch.randn(16, 5, generator=generator) for _ in range(STEPS))
    batches = [(x, x.sum(1, keepdim=True)) for x in draw]

    model, optimizer, loss_of = build()
    before = loss_of(batches[0]).item()
    foreign_fit(loss_of, optimizer, batches)
    after = loss_of(batches[0]).item()

    other, two_step, other_loss_of = build()
    passes = two_step_fit(other_loss_of, two_step, batches)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    print(f"loss {before:.3f} -> {after:.3f} in {STEPS} steps and {passes} passes; both loops alike: {same}")
    assert after < before / 2
    assert same
    assert passes == STEPS + STEPS // 5


if __name__ == "__main__":
    main()
