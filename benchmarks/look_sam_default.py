"""Which push should be LookSAM's default: harm beside the base, and how much of SAM's gain stays.

    python benchmarks/look_sam_default.py --fashion FOLDER [--cell NAME ...]      # goes on where it was

Two networks with batch normalisation (1,000 Fashion-MNIST images at 14 x 14; MNIST-1D), each with SGD and AdamW under a
one-cycle learning rate whose peak the base chose on validation data (seed 0), two radii, k = 5, three seeds; further
candidates with one seed. A push is the smallest of its bounds, in units of the stored g_v:

    alpha   alpha ||g|| / ||g_v||         the paper's: its length is alpha times the gradient's
    ratio   ||g|| / ||g at the refresh||  as long, beside the gradient, as the correction was at the refresh
    one     1                             as long as the correction was at the refresh

and with `agree` nothing is pushed where <g_v, g> < 0, that is where the weights have gone past what the push corrects.
Writes results/look_sam_default.json; about fifteen minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import steppe
from steppe._algebra import add_scaled_, inner, norm, ratio
from steppe.combine import Grads, Memory, Reuse
from steppe.compare.data.signals import drawn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
SEEDS, RADII, K = (0, 1, 2), (0.05, 0.2), 5


@dataclass(frozen=True)
class Bounded(Reuse):
    """The candidates: g_v times the smallest of some bounds."""

    bounds: tuple[str, ...] = ()
    agree: bool = False

    def skipped(self, t: int, grads: Grads, memory: Memory) -> Grads:
        """The gradient plus the stored push."""
        if "g_v" not in memory:
            return grads
        names = list(memory["g_v"])
        g, g_v = [grads[k] for k in names], [memory["g_v"][k] for k in names]
        length = norm(g)
        alpha = self.alpha * ratio(length, memory["g_v_norm"])  # type: ignore[operator]
        sizes = {"alpha": alpha, "ratio": ratio(length, memory["g_norm"]), "one": torch.ones(())}
        size = torch.stack([sizes[name] for name in self.bounds]).min()
        if self.agree:
            size = torch.where(inner(g_v, g) < 0, torch.zeros(()), size)
        add_scaled_(g, g_v, size)
        return grads


CANDIDATES: dict[str, Reuse] = {
    "guarded": Reuse(0.7, "guarded"),
    "natural": Reuse(push="natural"),
    "paper, alpha .7": Reuse(0.7, "paper"),
}
PILOTS: dict[str, Reuse] = {
    "paper, alpha .3": Reuse(0.3, "paper"),
    "paper, alpha .1": Reuse(0.1, "paper"),
    "ratio, one": Bounded(bounds=("ratio", "one")),
    "ratio, one, agree": Bounded(bounds=("ratio", "one"), agree=True),
}
"""Name -> the combination. Guarded is "ratio, alpha .7, agree", natural "ratio" alone; pilots have one seed."""


def conv(kind: type[nn.Module], norms: type[nn.Module], inside: int, outside: int) -> nn.Sequential:
    """Convolution with stride 2, batch normalisation, ReLU."""
    return nn.Sequential(kind(inside, outside, 3, stride=2, padding=1, bias=False), norms(outside), nn.ReLU())  # type: ignore[call-arg]


def network(task: str) -> nn.Module:
    """Three convolutions and a linear layer."""
    if task == "fashion":
        blocks = [conv(nn.Conv2d, nn.BatchNorm2d, a, b) for a, b in ((1, 16), (16, 32), (32, 32))]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(128, 10))
    blocks = [conv(nn.Conv1d, nn.BatchNorm1d, a, 25) for a in (1, 25, 25)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(125, 10))


@dataclass(frozen=True)
class Cell:
    """A task with an optimizer: what is trained how long, and the peaks of the learning rate to choose from."""

    task: str
    optimizer: str
    peaks: tuple[float, ...]
    epochs: int
    batch: int


CELLS = {
    "fashion, SGD": Cell("fashion", "sgd", (0.05, 0.2), 15, 50),
    "fashion, AdamW": Cell("fashion", "adamw", (0.003, 0.01), 15, 50),
    "mnist1d, SGD": Cell("mnist1d", "sgd", (0.05, 0.2), 10, 100),
    "mnist1d, AdamW": Cell("mnist1d", "adamw", (0.003, 0.01), 10, 100),
}


class Data:
    """Training, validation and test parts of both tasks."""

    def __init__(self, fashion: str) -> None:
        x, y = drawn(5000, seed=42)
        self.fashion, self.line = fashion, (torch.tensor(x, dtype=torch.float32), torch.tensor(y))
        self._images: dict[str, tuple[Tensor, Tensor]] = {}

    def parts(self, task: str, seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """What seed `seed` trains on, chooses by and is tested on; the test part is the same for all."""
        if task == "mnist1d":
            x, y = self.line[0].unsqueeze(1), self.line[1]
            return (x[:3000], y[:3000]), (x[3000:4000], y[3000:4000]), (x[4000:], y[4000:])
        x, y = self._read("train")
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        test = self._read("t10k")
        train, val = order[:1000], order[1000:2000]
        return (x[train], y[train]), (x[val], y[val]), (test[0][:4000], test[1][:4000])

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        if part not in self._images:
            import gzip

            raw = [gzip.decompress((Path(self.fashion) / f"{part}-{name}.gz").read_bytes())
                   for name in ("images-idx3-ubyte", "labels-idx1-ubyte")]  # fmt: skip
            images = torch.frombuffer(bytearray(raw[0][16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
            small = F.avg_pool2d(images.float() / 255, 2)
            self._images[part] = (small - 0.286) / 0.353, torch.tensor(list(raw[1][8:]))
        return self._images[part]


def made(cell: Cell, model: nn.Module, name: str, rho: float, peak: float) -> tuple[Any, Any]:
    """The base optimizer and the gradient beside it: None for the base."""
    kinds = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, weight_decay=5e-4),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01),
    }
    optimizer = kinds[cell.optimizer]()
    if name == "base":
        return optimizer, None
    if name == "SAM":
        return optimizer, steppe.SAM(model, optimizer, rho=rho)
    parts = {"ascent": steppe.Ascent(rho), "schedule": steppe.Every(K), "combine": (CANDIDATES | PILOTS)[name]}
    return optimizer, steppe.SharpnessAware(model, optimizer, **parts)  # type: ignore[arg-type]


def train(cell: Cell, data: Data, name: str, rho: float, peak: float, seed: int) -> dict[str, float]:
    """Validation and test accuracy in per cent after one training."""
    (x, y), val, test = data.parts(cell.task, seed)
    torch.manual_seed(seed)
    model = network(cell.task)
    optimizer, sharp = made(cell, model, name, rho, peak)
    steps = len(y) // cell.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps * cell.epochs)
    for _ in range(cell.epochs):
        order = torch.randperm(len(y)).split(cell.batch)[:steps]
        for index in order:

            def loss_of(index: Tensor = index) -> Tensor:
                return F.cross_entropy(model(x[index]), y[index])

            loss_of().backward() if sharp is None else sharp.backward(loss_of)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return {"val": accuracy(model, val), "test": accuracy(model, test)}


def accuracy(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """In per cent."""
    model.eval()
    with torch.no_grad():
        right = (model(part[0]).argmax(1) == part[1]).float().mean().item()
    model.train()
    return 100 * right


class Runs:
    """Finished trainings, a line each, never repeated."""

    def __init__(self, path: Path, data: Data, *, kept_only: bool = False) -> None:
        self.path, self.data, self.kept_only = path, data, kept_only
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        self.done: dict[tuple[Any, ...], dict[str, float]] = {tuple(key): found for key, found in lines}

    def get(self, cell: str, name: str, rho: float, peak: float, seed: int) -> dict[str, float]:
        """One training's accuracies."""
        key = (cell, name, rho, peak, seed)
        if key not in self.done:
            self.done[key] = train(CELLS[cell], self.data, name, rho, peak, seed)
            with self.path.open("a") as file:
                file.write(json.dumps([key, self.done[key]]) + "\n")
        return self.done[key]

    def tests(self, cell: str, name: str, rho: float, peak: float, seeds: tuple[int, ...]) -> list[float]:
        """Test accuracies by seed; of the first seeds alone where only what is kept is asked for."""
        if self.kept_only:
            seeds = tuple(takewhile(lambda seed: (cell, name, rho, peak, seed) in self.done, seeds))
        return [self.get(cell, name, rho, peak, seed)["test"] for seed in seeds]

    def peak(self, cell: str) -> float:
        """The base's peak of the learning rate with the best validation accuracy of seed 0."""
        return max(CELLS[cell].peaks, key=lambda peak: self.get(cell, "base", 0.0, peak, 0)["val"])


def table(runs: Runs, cell: str) -> dict[str, Any]:
    """Test accuracies by seed of the base, and of SAM and every candidate at both radii."""
    peak = runs.peak(cell)
    base = runs.tests(cell, "base", 0.0, peak, SEEDS)
    tests: dict[str, dict[str, list[float]]] = {}
    for name in ("SAM", *CANDIDATES, *PILOTS):
        seeds = SEEDS[:1] if name in PILOTS else SEEDS
        tests[name] = {f"{rho:g}": runs.tests(cell, name, rho, peak, seeds) for rho in RADII}
        print(cell, name, {rho: round(fmean(values), 1) for rho, values in tests[name].items()}, flush=True)
    return {"peak": peak, "base": base, "tests": tests, "worst": worst(base, tests)}


def worst(base: list[float], tests: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """The lowest mean difference to the base, over the radii, of the same seeds: the harm that a radius can do."""
    return {
        name: min(fmean(a - b for a, b in zip(values, base, strict=False)) for values in radii.values())
        for name, radii in tests.items()
    }


def main() -> None:
    """Train what is missing, then write the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fashion", required=True, help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--cell", action="append", choices=CELLS, help="which; all by default")
    parser.add_argument("--folder", type=Path, default=Path("results/look_sam_default"), help="where runs are kept")
    parser.add_argument("--summary", action="store_true", help="only summarise the runs that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    runs = Runs(given.folder / "runs.jsonl", Data(given.fashion), kept_only=given.summary)
    cells = {cell: table(runs, cell) for cell in given.cell or CELLS}
    command = "python benchmarks/look_sam_default.py --fashion FASHION-MNIST"
    provenance = {"steppe": steppe.__version__, "torch": torch.__version__, "load": os.getloadavg()[0]}
    record = {"command": command, "radii": RADII, "seeds": SEEDS, "k": K, "cells": cells, "provenance": provenance}
    (HERE / "results" / "look_sam_default.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
