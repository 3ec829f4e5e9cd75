"""`steppe compare` on training code of your own: a plain loop, with `sharpen` for the method of the run.

    steppe compare --script compare_loop.py:train --methods sam,rst --seeds 5

The loop yields after every epoch, so that early stopping is among the baselines, and takes `length`, a float, so
that the base trained twice and half as long is.
"""

import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

from steppe.cli import main as steppe

COMPARED = "--methods sam --rho 0.2 --seeds 2 --tune-seeds 1 --jobs 1 --settings epochs=10"


def digits(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """200 digits to train on, 800 for validation, 797 for the test: the test is the same for every seed."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    test, rest = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).split([797, 1000])
    train, val = rest[torch.randperm(1000, generator=torch.Generator().manual_seed(seed))].split([200, 800])
    return [(x[part], y[part]) for part in (train, val, test)]


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


def train(sharpen: Any, seed: int, length: float = 1, epochs: int = 100) -> Iterator[dict[str, Any]]:
    """Anybody's loop; `sharpen` is new, and `sharp.backward` stands where `loss.backward` stood."""
    torch.manual_seed(seed)
    (x, y), val, test = digits(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    steps = max(1, round(epochs * length)) * 4
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    sharp = sharpen(model, optimizer, total_steps=steps)  # new
    for _ in range(steps // 4):
        for rows in torch.randperm(200).split(50):
            sharp.backward(lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), (x[rows], y[rows]))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        yield {"val": {"accuracy": accuracy(model, *val)}, "test": {"accuracy": accuracy(model, *test)}}


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        assert steppe(["compare", "--script", f"{__file__}:train", "--out", out, *COMPARED.split()]) == 0


if __name__ == "__main__":
    main()
