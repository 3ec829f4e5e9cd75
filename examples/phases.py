"""A loop that somebody else owns: it calls your loss and backward by itself, and offers one hook after that.

The phases are what `sharp.backward` is made of. After an ordinary backward, `ascend()` moves to the perturbed
weights if this step is to ascend; `restore()` brings the weights back and leaves the gradient to step with.
"""

from collections.abc import Callable

import torch
from torch import nn

import steppe

Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[Batch], torch.Tensor]
Hook = Callable[[Batch], None]


def foreign_fit(loss_of: Loss, optimizer: torch.optim.Optimizer, batches: list[Batch], after_backward: Hook) -> None:
    """The loop of a framework, which cannot be changed."""
    for batch in batches:
        optimizer.zero_grad()
        loss_of(batch).backward()
        after_backward(batch)
        optimizer.step()


def build() -> tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware, Loss]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sharp = steppe.RST(model, optimizer, rho=0.1, p=0.5)
    return model, optimizer, sharp, lambda batch: nn.functional.mse_loss(model(batch[0]), batch[1])


def main() -> None:
    generator = torch.Generator().manual_seed(1)
    draw = (torch.randn(16, 5, generator=generator) for _ in range(50))
    batches = [(x, x.sum(1, keepdim=True)) for x in draw]
    ascents = 0

    model, optimizer, sharp, loss_of = build()

    def after_backward(batch: Batch) -> None:
        nonlocal ascents
        if sharp.ascend():
            loss_of(batch).backward()
            sharp.restore()
            ascents += 1

    foreign_fit(loss_of, optimizer, batches, after_backward)

    own_model, own_optimizer, own_sharp, own_loss_of = build()
    for batch in batches:
        own_optimizer.zero_grad()
        own_sharp.backward(own_loss_of, batch)
        own_optimizer.step()

    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), own_model.parameters(), strict=True))
    print(f"{ascents} of {len(batches)} steps ascended; the same weights as with sharp.backward: {same}")
    assert same
    assert 0 < ascents < len(batches)


if __name__ == "__main__":
    main()
