"""`steppe compare` on a training with Lightning: `SharpCallback(sharpen)`.

    steppe compare --script compare_lightning.py:train --methods sam,rst --seeds 5

Lightning owns the loop, so the figures of its validations are yielded when it is done.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L  # noqa: N812
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from steppe.cli import main as steppe
from steppe.integrations.lightning import SharpCallback

COMPARED = "--methods sam --rho 0.2 --seeds 2 --tune-seeds 1 --jobs 1 --settings epochs=3"


def digits(seed: int) -> dict[str, TensorDataset]:
    """200 digits to train on, 800 for validation, 797 for the test: the test is the same for every seed."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
    test, rest = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).split([797, 1000])
    train, val = rest[torch.randperm(1000, generator=torch.Generator().manual_seed(seed))].split([200, 800])
    return {name: TensorDataset(x[rows], y[rows]) for name, rows in (("train", train), ("val", val), ("test", test))}


class Digits(L.LightningModule):
    """An ordinary module in automatic optimisation, with batch normalisation; it looks at both parts every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip
        self.looks: list[dict[str, Any]] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        found = {"accuracy": float((self.net(batch[0]).argmax(1) == batch[1]).float().mean())}
        if dataloader_idx == 0:
            self.looks.append({"val": found})
        else:
            self.looks[-1]["test"] = found

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)


def train(sharpen: Any, seed: int, length: float = 1, epochs: int = 20) -> Iterator[dict[str, Any]]:
    """Lightning as ever, but for one callback."""
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(seed)
    data, module = digits(seed), Digits()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=max(1, round(epochs * length)), callbacks=[SharpCallback(sharpen)], default_root_dir=folder,
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        whole = [DataLoader(data["val"], 800), DataLoader(data["test"], 797)]
        trainer.fit(module, DataLoader(data["train"], 50, shuffle=True), whole)
    yield from module.looks


def main() -> None:
    with tempfile.TemporaryDirectory() as out:
        assert steppe(["compare", "--script", f"{__file__}:train", "--out", out, *COMPARED.split()]) == 0


if __name__ == "__main__":
    main()
