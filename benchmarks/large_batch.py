"""Look-LayerSAM on LAMB as the batch grows: a small ViT on Fashion-MNIST at equal epochs, batch 256 to 16k.

    python benchmarks/large_batch.py --fashion FOLDER      # FOLDER: the four gzip files of Fashion-MNIST

16,384 images pooled to 12x12, patches of 4x4, width 32, 2 blocks; batches beyond 1,024 are accumulated exactly
(`micro_batches`). LAMB (pytorch_optimizer) with a tenth of warm-up, then cosine, clipping 1, decay 0.1; its learning
rate follows the square root of the batch. Two values are tried of one setting each, on the validation images and one
seed: LAMB of its learning rate at batch 256, the others (at LAMB's choice) of rho. Then all seeds.

Every finished run is kept, so a benchmark that was broken off goes on; `--minutes` stops it in good order. About
twenty minutes of one core. Writes benchmarks/results/large_batch.json.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from pytorch_optimizer import Lamb
from sweep import FASHION, settings
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import steppe
from steppe._command.files import read_json, write_json
from steppe._command.networks import _ViT
from steppe.compare.data.examples import Split, generator
from steppe.compare.engine import measure
from steppe.compare.engine.run import load_task, provenance
from steppe.compare.engine.spec import short_hash

BATCHES = (256, 2048, 8192, 16384)
PIECE, SIDE, PATCH, WIDTH, DEPTH = 1024, 12, 4, 32, 2
RATES, RADII = (0.005, 0.01), (0.005, 0.02)
WARMUP, DECAY, CLIP = 0.1, 0.1, 1.0
Make = Callable[[nn.Module, torch.optim.Optimizer, float], steppe.SharpnessAware]
METHODS: dict[str, tuple[str, Make | None]] = {
    "lamb": ("LAMB", None),
    "layer_sam": ("LAMB + LayerSAM", lambda m, o, rho: steppe.LayerSAM(m, o, rho=rho)),
    "look_layer_sam": ("LAMB + Look-LayerSAM", lambda m, o, rho: steppe.LookLayerSAM(m, o, rho=rho, push="paper")),
    "look_layer_sam_natural": (
        "LAMB + Look-LayerSAM, natural push", lambda m, o, rho: steppe.LookLayerSAM(m, o, rho=rho, push="natural")
    ),
}  # fmt: skip
TARGET = Path(__file__).parent / "results" / "large_batch.json"


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    images: int
    epochs: int
    device: str


@dataclass(frozen=True)
class Training:
    """One run. rate: LAMB's learning rate at batch 256; rho: None for LAMB alone."""

    method: str
    batch: int
    rate: float
    rho: float | None
    seed: int


class _LateError(Exception):
    """The minutes are over."""


def small_vit() -> nn.Module:
    """The ViT of the studies, narrower, with patches of PATCH x PATCH."""
    model = _ViT((1, SIDE, SIDE), 10, WIDTH, DEPTH)
    model.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
    model.position = nn.Parameter(0.02 * torch.randn(1, (SIDE // PATCH) ** 2 + 1, WIDTH))
    return model


@lru_cache(maxsize=1)
def data(fashion: str, images: int, seed: int, device: str) -> tuple[Split, Split, Split]:
    """Training, validation and test images of a seed, pooled."""
    task = load_task(settings(FASHION, fashion, labelled=images, validation=2000), seed)
    pooled = (Split(F.adaptive_avg_pool2d(s.x, SIDE), s.y).to(device) for s in (task.train, task.val, task.test))
    return next(pooled), next(pooled), next(pooled)


def shape(step: int, steps: int) -> float:
    """Share of the learning rate: a tenth of warm-up, then cosine."""
    warm = max(1, round(WARMUP * steps))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(run: Training, size: Size, fashion: str) -> dict[str, Any]:
    """One training from its first step to its accuracies."""
    parts, start = data(fashion, size.images, run.seed, size.device), time.perf_counter()
    torch.manual_seed(run.seed)
    model = small_vit().to(size.device)
    rate = run.rate * math.sqrt(run.batch / BATCHES[0])
    optimizer = Lamb(model.parameters(), lr=rate, weight_decay=DECAY)
    per_epoch = size.images // run.batch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(shape, steps=size.epochs * per_epoch))
    make, rng = METHODS[run.method][1], generator(run.seed)
    sharp = make(model, optimizer, run.rho) if make is not None and run.rho is not None else None
    loss_of = partial(_share_of_loss, model, run.batch)
    for _ in range(size.epochs):
        order = torch.randperm(size.images, generator=rng).to(size.device)
        for index in order.split(run.batch)[:per_epoch]:
            pieces = [parts[0].take(part) for part in index.split(PIECE)]
            if sharp is None:
                for piece in pieces:
                    loss_of(piece).backward()
            else:
                sharp.backward(loss_of, micro_batches=pieces)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    found = {"val": measure.accuracy(model, parts[1]), "test": measure.accuracy(model, parts[2])}
    return asdict(run) | found | {"steps": size.epochs * per_epoch, "seconds": round(time.perf_counter() - start, 2)}


def _share_of_loss(model: nn.Module, batch: int, piece: Split) -> Tensor:
    return F.cross_entropy(model(piece.x), piece.y, reduction="sum") / batch


class Bench:
    """Runs what is missing, until the minutes are over."""

    def __init__(self, size: Size, fashion: str, folder: Path, minutes: float) -> None:
        self.size, self.fashion, self.folder = size, fashion, folder
        self.until = time.monotonic() + 60 * minutes

    def result(self, run: Training) -> dict[str, Any]:
        """The record of a run, from the folder or from a training now."""
        path = self.folder / f"{run.method}-b{run.batch}-{short_hash([asdict(run), asdict(self.size)])}.json"
        kept: dict[str, Any] | None = read_json(path)
        if kept is None:
            if time.monotonic() > self.until:
                raise _LateError
            kept = train(run, self.size, self.fashion)
            write_json(path, kept)
            print(f"{run}: test {kept['test']:.4f} in {kept['seconds']:.0f} s", file=sys.stderr)
        return kept

    def chosen(self, method: str, batch: int, rate: float | None) -> Training:
        """The better of two values on the validation images of seed 0."""
        if rate is None:
            tries = [Training(method, batch, each, None, 0) for each in RATES]
        else:
            tries = [Training(method, batch, rate, rho, 0) for rho in RADII]
        return max(tries, key=lambda run: self.result(run)["val"])

    def row(self, method: str, batch: int, seeds: int) -> dict[str, Any]:
        """One method at one batch: its chosen setting and all seeds."""
        rate = None if method == "lamb" else self.chosen("lamb", batch, None).rate
        best = self.chosen(method, batch, rate)
        runs = [self.result(Training(method, batch, best.rate, best.rho, seed)) for seed in range(seeds)]
        tests = [run["test"] for run in runs]
        return {
            "method": method, "label": METHODS[method][0], "batch": batch, "rate": best.rate, "rho": best.rho,
            "steps": runs[0]["steps"], "seeds": seeds, "test": mean(tests),
            "deviation": stdev(tests) if seeds > 1 else None, "tests": tests,
            "seconds": mean(run["seconds"] for run in runs),
        }  # fmt: skip


def main() -> None:
    """Run what is missing and write what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", required=True, help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--images", type=int, default=16384, help="training images (16384; at most 58000)")
    parser.add_argument("--epochs", type=int, default=16, help="of every run (16)")
    parser.add_argument("--seeds", type=int, default=3, help="of every row (3)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so many")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--folder", type=Path, default=Path("results/large_batch"), help="where the runs are kept")
    given = parser.parse_args()
    bench = Bench(Size(given.images, given.epochs, given.device), given.fashion, given.folder, given.minutes)
    rows = []
    try:
        for batch in BATCHES:
            for method in METHODS:
                rows.append(bench.row(method, batch, given.seeds))
                print(f"{batch} {rows[-1]['label']}: {rows[-1]['test']:.4f}")
    except _LateError:
        print("the minutes are over; the same command goes on from here")
    spec = settings(FASHION, given.fashion)
    command = "python benchmarks/large_batch.py --fashion FASHION-MNIST"
    if (given.images, given.epochs) != (16384, 16):
        command += f" --images {given.images} --epochs {given.epochs}"
    facts = {"radii": RADII, "rates_at_256": RATES, "parameters": sum(p.numel() for p in small_vit().parameters())}
    whole = {"command": command, "size": asdict(bench.size), **facts, "rows": rows, "provenance": provenance(spec)}
    write_json(TARGET, whole)


if __name__ == "__main__":
    main()
