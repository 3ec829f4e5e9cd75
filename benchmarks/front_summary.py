"""What the search for the front found, as one JSON: accuracies, gains over the best baseline, shares kept, time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import front
import torch

from steppe._command.statistics import estimate, paired, share
from steppe.compare.engine import run, spec, store

BASELINES = {"tuned": (1, "test"), "stopped early": (1, "early_test"), "twice": (2, "test")}
"""Name -> (times the tuned length, what is measured)."""


def records(folder: Path, task: str, arm: str) -> tuple[float, float, front.Runs] | None:
    """The chosen length and knob of an arm and its runs, if all of them are there."""
    runs = front.Runs(folder, task, arm, None)
    try:
        length, knob = runs.choose()
        [runs.get(length, knob, seed) for seed in front.seeds(task)]
    except KeyError:
        return None
    return length, knob, runs


def row(found: tuple[float, float, front.Runs], times: float, value: str) -> dict[int, float]:
    """Per cent by seed."""
    length, knob, runs = found
    return {seed: 100 * runs.get(length * times, knob, seed)[value] for seed in front.seeds(runs.task)}


def baselines(found: tuple[float, float, front.Runs]) -> tuple[str, dict[str, dict[int, float]]]:
    """The name of the baseline with the best test accuracy (the hardest to beat), and the accuracies of all."""
    all_rows = {name: row(found, times, value) for name, (times, value) in BASELINES.items()}
    return max(all_rows, key=lambda name: fmean(all_rows[name].values())), all_rows


def table(folder: Path, task: str) -> dict[str, Any] | None:
    """One task's rows."""
    base = records(folder, task, "base")
    if base is None:
        return None
    best, all_baselines = baselines(base)
    found = {arm: records(folder, task, arm) for arm in front.ARMS if arm != "base"}
    gains = {arm: paired(row(f, 1, "test"), all_baselines[best]) for arm, f in found.items() if f}
    rows = []
    for arm, gain in gains.items():
        length, knob, runs = found[arm]  # type: ignore[misc]
        kept = share(gain, gains["sam"]) if "sam" in gains else None
        passes = fmean(runs.get(length, knob, seed)["passes"] for seed in front.seeds(task))
        rows.append(
            {"arm": arm, "length": length, "knob": knob, "passes": passes, "gain": shown(gain), "kept": kept,
             "accuracy": shown(list(row(found[arm], 1, "test").values()))}  # type: ignore[arg-type]
        )  # fmt: skip
    shown_baselines = {name: shown(list(values.values())) for name, values in all_baselines.items()}
    return {"best_baseline": best, "base": {"length": base[0], "lr_factor": base[1]}, "baselines": shown_baselines,
            "rows": rows}  # fmt: skip


def shown(values: list[float]) -> dict[str, Any]:
    """Mean, half-width of the 95 % interval, and how many."""
    found = estimate(values)
    assert found is not None
    return {"mean": found.mean, "ci95": found.ci95, "n": found.n}


def times(task: str, fashion: str, turns: int = 200) -> dict[str, dict[str, float]]:
    """Processor seconds of a step of every arm over the base's, turn by turn in one process with one thread."""
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
    return {arm: {"median": median(r), "low": r[0], "high": r[-1], "base_ms": 1000 * median(base)}
            for arm, r in ratios.items()}  # fmt: skip


def write(folder: Path, out: Path, fashion: str = "") -> None:
    """Summarise everything there; with Fashion-MNIST's folder also measure the times."""
    old = json.loads(out.read_text()) if out.exists() else {"times": {}}
    found = {task: made for task in front.TASKS if (made := table(folder, task))}
    measured = {task: times(task, fashion) for task in [*found, *front.TIMED]} if fashion else old["times"]
    command = "python benchmarks/front.py --fashion FASHION-MNIST"
    settings = spec.resolve({"task": "digits-few", "device": "cpu"})
    summary = {"command": command, "tasks": found, "times": measured,
               "provenance": run.provenance(settings)}  # fmt: skip
    store.write_json(out, summary)
