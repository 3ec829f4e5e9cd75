"""Made-up tasks that train in a blink."""

import os
import signal
from pathlib import Path

import torch
from torch import nn

from steppe.compare import Split, Task


def split(count: int, seed: int) -> Split:
    """Two classes of 8x8 images: bright above, or bright below, with noise."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    x = torch.randn(count, 1, 8, 8, generator=rng)
    x[y == 1, :, :4] += 0.7
    x[y == 0, :, 4:] += 0.7
    return Split(x, y)


def task(seed: int) -> Task:
    recipe = {"model": "mlp", "epochs": 4, "batch_size": 10, "lr": 0.05}
    return Task("tiny", split(40, seed), split(30, 1000), split(50, 2000), 2, recipe)


def wordy(seed: int) -> Task:
    """Inputs as a dict of tensors."""
    parts = (
        Split({"image": s.x, "scale": torch.ones(len(s))}, s.y) for s in (split(20, seed), split(10, 1), split(10, 2))
    )
    return Task("wordy", *parts, 2, {"epochs": 1, "batch_size": 10, "model": "tests.compare.tiny:wordy_model"})


class WordyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2)

    def forward(self, x: dict) -> torch.Tensor:
        return self.head(x["image"].flatten(1) * x["scale"][:, None])


def wordy_model(shape: tuple, classes: int) -> nn.Module:
    return WordyModel()


def broken_model(shape: tuple, classes: int) -> nn.Module:
    """Is built, and fails as soon as it trains."""

    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("the model is broken")
            return x.flatten(1)[:, :2]

    return Broken(2, 2)


def mortal_model(shape: tuple, classes: int) -> nn.Module:
    """Whoever builds it first and is not the process whose id stands in the file `dies` is killed."""
    flag = Path("dies")
    try:
        if flag.read_text() != str(os.getpid()):
            flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    except FileNotFoundError:
        pass
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def bad_recipe(seed: int) -> Task:
    made = task(seed)
    return Task("bad", made.train, made.val, made.test, 2, {"epoch": 3})


def no_task(seed: int) -> int:
    return seed


def spoilt(seed: int) -> Task:
    """One value of one validation example is missing."""
    made = task(seed)
    made.val.x[7, 0, 3, 3] = torch.nan
    return made
