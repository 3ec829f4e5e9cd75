"""AdaSAM's training loss against steps at three batch sizes: the linear speed-up of its analysis, seen or not.

Whole MiniLM on SST-2. The step size grows with the root of the batch, as the theorem has it (gamma of order
sqrt(b / T)): b times the batch should then need a b-th of the steps to the same loss. So every batch size trains on as
many examples. The loss is that of a fixed set of training examples, without dropout. Started by
benchmarks/lora_study.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure

from steppe._command.files import read_json, write_json
from steppe.compare.engine import measure, run
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec, resolve, short_hash

BATCHES = (4, 8, 16)
LR, RHO = 3e-5, 0.02
"""The step size at the largest batch, and AdaSAM's radius."""

EVERY, SEEN = 4, 128
"""Steps of the largest batch between two looks, and training examples in each."""

TARGETS = (0.95, 0.9, 0.8)
"""Losses to reach, as shares of the loss at the start (0.95 was added when the smallest batch had not come to 0.9)."""


def as_many(steps: int, batch: int) -> int:
    """Steps with the examples of `steps` of the largest batch."""
    return steps * max(BATCHES) // batch


def settings(places: dict[str, str], batch: int, steps: int) -> Spec:
    """The study's settings at one batch size."""
    return resolve({
        "task": f"text:{places['data']}/sst2/stsa.binary.train", "model": f"hf:{places['model']}", "adapt": "full",
        "optimizer": "amsgrad", "lr": LR * (batch / max(BATCHES)) ** 0.5, "lr_schedule": "constant", "warmup": 0.0,
        "batch_size": batch, "max_steps": steps, "max_length": 32, "validation": 64, "weight_decay": 0.0,
        "device": "cpu",
    })  # fmt: skip


def losses(spec: Spec, seed: int, steps: int) -> dict[str, list[float]]:
    """Steps, and the loss after each."""
    torch.set_num_threads(1)
    task = run.load_task(spec, seed)
    trainer = run.make_trainer(spec, task, Run("adasam", RHO, seed), steps)
    seen = task.train.take(torch.arange(SEEN))
    found: dict[str, list[float]] = {"step": [0], "loss": [measure.mean_loss(trainer.model, seen)]}
    stream = itertools.chain.from_iterable(run.batches(task, spec.batch_size, seed))
    for step, batch in zip(range(1, steps + 1), stream, strict=False):
        trainer.step(batch)
        if step % as_many(EVERY, spec.batch_size) == 0 or step == steps:
            found["step"].append(step)
            found["loss"].append(measure.mean_loss(trainer.model, seen))
    return found


def kept(places: dict[str, str], batch: int, seed: int, steps: int, folder: Path) -> dict[str, list[float]]:
    """The losses of one run, trained now unless an earlier call has done so; `steps` are of the largest batch."""
    steps = as_many(steps, batch)
    spec = settings(places, batch, steps)
    path = folder / f"{batch}-{seed}-{short_hash([spec.hash(), RHO, EVERY, SEEN, seed])}.json"
    found = read_json(path)
    if found is None:
        found = losses(spec, seed, steps)
        write_json(path, found)
        print(f"AdaSAM, batch {batch}, seed {seed}: loss {found['loss'][0]:.3f} to {found['loss'][-1]:.3f}")
    return found


def first_below(curve: dict[str, list[float]], share: float) -> float | None:
    """The first looked-at step at which the loss is below a share of the first one."""
    limit = share * curve["loss"][0]
    return next((step for step, loss in zip(curve["step"], curve["loss"], strict=True) if loss < limit), None)


def reached(curves: list[dict[str, list[float]]]) -> dict[str, float | None]:
    """Target -> median over seeds of the steps to it; None where not every seed got there."""
    found = {f"{share:g}": [first_below(curve, share) for curve in curves] for share in TARGETS}
    return {share: None if None in steps else float(median(steps)) for share, steps in found.items()}  # type: ignore[type-var]


def draw(curves: dict[int, list[dict[str, list[float]]]], path: Path) -> None:
    """The mean loss over seeds by step, shaded from the lowest to the highest seed."""
    figure = Figure((5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (batch, runs), colour in zip(curves.items(), ("#9ecae1", "#4292c6", "#08306b"), strict=True):
        columns = list(zip(*(each["loss"] for each in runs), strict=True))
        axes.fill_between(
            runs[0]["step"], [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.2, lw=0
        )
        axes.plot(runs[0]["step"], [sum(c) / len(c) for c in columns], color=colour, label=f"batch {batch}")
    axes.set(xlabel="step", ylabel="training loss", title="AdaSAM, MiniLM on SST-2, lr ∝ √batch")
    axes.legend(frameon=False)
    figure.savefig(path)


def speedup(places: dict[str, str], steps: int, seeds: int, folder: Path, results: Path) -> None:
    """Train at every batch size and seed; write adasam_speedup.json and adasam_speedup.svg."""
    curves = {batch: [kept(places, batch, seed, steps, folder) for seed in range(seeds)] for batch in sorted(BATCHES)}
    made: dict[str, Any] = {
        "command": "python benchmarks/lora_study.py speedup",
        "provenance": run.provenance(settings(places, max(BATCHES), steps)),
        "settings": {"rho": RHO, "lr": f"{LR:g} * sqrt(batch / {max(BATCHES)})", "steps": steps, "seeds": seeds},
        "steps_to_share_of_first_loss": {str(batch): reached(runs) for batch, runs in curves.items()},
        "curves": {str(batch): runs for batch, runs in curves.items()},
    }
    write_json(results / "adasam_speedup.json", made)
    draw(curves, results / "adasam_speedup.svg")
    print(f"speedup: {results / 'adasam_speedup.json'}")
