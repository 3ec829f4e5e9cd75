"""Your own data and network for `steppe compare`: two functions, named as `module:function`.

    steppe compare --task custom_task:tumours --model custom_task:network

Real data that scikit-learn brings along: 569 tumours, 30 measurements each, benign or malignant. 60 are
labelled.
"""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from steppe.cli import main as steppe
from steppe.compare import Split, Task

COMPARED = "--methods sam --rho 0.1 --seeds 3 --tune-seeds 1 --jobs 1"


def tumours(seed: int) -> Task:
    """The task of one seed: which examples train, validate and test. Every method gets the same ones."""
    measurements, labels = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor(measurements, dtype=torch.float32), torch.tensor(labels)
    test, rest = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).split([169, 400])
    train, val = rest[torch.randperm(400, generator=torch.Generator().manual_seed(seed))].split([60, 340])
    x = (x - x[train].mean(0)) / x[train].std(0)
    recipe = {"epochs": 40, "batch_size": 20, "lr": 0.02}
    parts = [Split(x[index], y[index]) for index in (train, val, test)]
    return Task("tumours", *parts, classes=2, recipe=recipe)


def network(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A small network for inputs of `shape` (without the batch)."""
    return nn.Sequential(nn.Linear(shape[0], 64), nn.ReLU(), nn.Linear(64, classes))


def main() -> None:
    assert torch.equal(tumours(0).train.x, tumours(0).train.x), "a seed must always give the same task"
    assert not torch.equal(tumours(0).train.x, tumours(1).train.x)
    with tempfile.TemporaryDirectory() as out:
        command = f"compare --task custom_task:tumours --model custom_task:network {COMPARED}"
        assert steppe([*command.split(), "--out", out]) == 0
        assert (Path(out) / "report.html").is_file()


if __name__ == "__main__":
    main()
