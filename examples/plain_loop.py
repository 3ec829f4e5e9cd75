"""The two lines that change in an ordinary loop, and what they give on 200 labelled digits.

The same network, data and seeds twice: once with `loss.backward()`, once with SAM's gradient in its place.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import steppe

EPOCHS, BATCH, SEEDS = 100, 50, 5


def digits(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's 8x8 digits in random order, scaled to [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


def train(x: torch.Tensor, y: torch.Tensor, seed: int, with_sam: bool) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * (len(x) // BATCH))
    sharp = steppe.SAM(model, optimizer, rho=0.2)  # new
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            xb, yb = x[batch], y[batch]
            if with_sam:
                sharp.backward(lambda: criterion(model(xb), yb))
            else:
                criterion(model(xb), yb).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return model


def main() -> None:
    correct = {False: 0.0, True: 0.0}
    for seed in range(SEEDS):
        x, y = digits(seed)
        for with_sam in correct:
            model = train(x[:200], y[:200], seed, with_sam)
            correct[with_sam] += float((model(x[200:]).argmax(1) == y[200:]).float().mean()) / SEEDS
    print(f"mean test accuracy over {SEEDS} seeds: base {correct[False]:.1%}, SAM {correct[True]:.1%}")
    assert correct[True] > correct[False]


if __name__ == "__main__":
    main()
