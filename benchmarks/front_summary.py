"""What the search for the front found, as one JSON: accuracies, gains over the best baseline, shares kept, time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import front
import torch

from steppe._command.statistics import estimate, paired, share
from steppe.compare.engine import run, spec, store

ENDS = {"": "test", ", stopped early": "early_test"}
"""What is added to a baseline's name -> what is measured."""

Found = tuple[float, float, front.Runs]


def records(folder: Path, task: str, arm: str, kept: front.Choices | None) -> Found | None:
    """The chosen length and knob of an arm and its runs, if all of them are there."""
    runs = front.Runs(folder, task, arm, None)
    try:
        length, knob = runs.choose(kept)
        for config in front.baselines(length, knob).values() if arm == "base" else [(length, knob)]:
            [runs.get(*config, seed) for seed in front.seeds(task)]
    except KeyError:
        return None
    return length, knob, runs


def row(runs: front.Runs, length: float, knob: float, value: str = "test") -> dict[int, float]:
    """Per cent by seed."""
    return {seed: 100 * runs.get(length, knob, seed)[value] for seed in front.seeds(runs.task)}


def baselines(found: Found) -> tuple[str, dict[str, dict[int, float]]]:
    """The name of the baseline with the best test accuracy (the hardest to beat), and the accuracies of all."""
    length, knob, runs = found
    rows = {
        name + end: row(runs, *config, value)
        for name, config in front.baselines(length, knob).items()
        for end, value in ENDS.items()
    }
    return max(rows, key=lambda name: fmean(rows[name].values())), rows


def table(folder: Path, task: str, kept: front.Choices | None) -> dict[str, Any] | None:
    """One task's rows."""
    base = records(folder, task, "base", kept)
    if base is None:
        return None
    best, rows = baselines(base)
    arms = {arm: found for arm in front.ARMS if arm != "base" and (found := records(folder, task, arm, kept))}
    gains = {arm: paired(row(runs, length, knob), rows[best]) for arm, (length, knob, runs) in arms.items()}
    return {
        "best_baseline": best, "base": {"length": base[0], "lr_factor": base[1]},
        "lengths": sorted({length for length, _ in front.baselines(*base[:2]).values()}),
        "baselines": {name: shown(values) for name, values in rows.items()},
        "rows": [arm_row(arm, arms[arm], gain, gains.get("sam")) for arm, gain in gains.items()],
    }  # fmt: skip


def arm_row(arm: str, found: Found, gain: list[float], sam: list[float] | None) -> dict[str, Any]:
    """What a method chose, reached, gained over the best baseline, and kept of SAM's gain."""
    length, knob, runs = found
    passes = fmean(runs.get(length, knob, seed)["passes"] for seed in front.seeds(runs.task))
    accuracies = row(runs, length, knob)
    return {
        "arm": arm, "length": length, "knob": knob, "passes": passes, "gain": shown(dict(enumerate(gain))),
        "kept": None if sam is None else share(gain, sam), "accuracy": shown(accuracies),
    }  # fmt: skip


def shown(values: dict[int, float]) -> dict[str, Any]:
    """Mean, half-width of the 95 % interval, p, how many, and the value of every seed."""
    found = estimate(list(values.values()))
    assert found is not None
    return {"mean": found.mean, "ci95": found.ci95, "p": found.p, "n": found.n, "seeds": list(values.values())}


def times(task: str, fashion: str, turns: int = 200) -> dict[str, dict[str, float]]:
    """Processor seconds of a step of every arm over the base's, turn by turn in one process with one thread."""
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    settings = front.resolved(task, fashion)
    data = run.load_task(settings, 0)
    made = {arm: front.parts(settings, arm, front.ARMS[arm][0][0], 0, data) for arm in front.ARMS}
    taken: dict[str, list[float]] = {arm: [] for arm in made}
    batches = (batch for epoch in run.batches(data, settings.batch_size, 0) for batch in epoch)
    for _, batch in zip(range(turns + 5), batches, strict=False):
        for arm, (model, optimizer, sharp) in made.items():
            start = time.thread_time()
            front.step(model, optimizer, sharp, batch)
            taken[arm].append(time.thread_time() - start)
    base = taken["base"][5:]
    # Blocks of twenty, because methods of two kinds of steps have no typical one.
    blocks = {arm: [sum(v[i : i + 20]) for i in range(5, turns + 5, 20)] for arm, v in taken.items()}
    ratios = {arm: sorted(a / b for a, b in zip(v, blocks["base"], strict=True)) for arm, v in blocks.items()}
    return {arm: {"median": median(r), "low": r[0], "high": r[-1], "base_ms": 1000 * median(base), "load": load}
            for arm, r in ratios.items()}  # fmt: skip


def write(folder: Path, out: Path, kept: front.Choices | None = None, fashion: str = "") -> None:
    """Summarise everything there; without kept choices, with Fashion-MNIST's folder, measure the times too."""
    old = json.loads(out.read_text()) if out.exists() else {"times": {}, "tasks": {}}
    found = {task: made for task in front.TASKS if (made := table(folder, task, kept))}
    measured = old["times"]
    if fashion and kept is None:
        measured = {task: times(task, fashion) for task in [*found, *front.TIMED]}
    command = "python benchmarks/front.py --fashion FASHION-MNIST"
    settings = spec.resolve({"task": "digits-few", "device": "cpu"})
    summary = {"command": command, "tasks": old["tasks"] | found, "times": measured,
               "provenance": run.provenance(settings)}  # fmt: skip
    store.write_json(out, summary)
