"""Tasks on which it can be told what a method wins: `steppe compare` on each, a summary each in benchmarks/results.

    python benchmarks/suite.py [NAME ...] [--data FOLDER]      # FOLDER holds ett/ETTh1.csv, fashion_mnist/, sst2/

Base and methods get the same budget: the base chooses its learning rate, methods their radius, on seeds of the tuning;
baselines are stopped early, trained twice as long, and averaged. A task that was broken off goes on where it was.
`python docs/suite_page.py` writes docs/suite.md from the summaries.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ALL = "sam,rst:p=1,samples={few},grst,look_sam,msam,rst:p=0.25,samples=1"
FOUR = "sam,rst:p=1,samples={few},grst,look_sam"
THREE = "sam,rst:p=1,samples={few},grst"


@dataclass(frozen=True)
class Task:
    """One task of the suite.

    Args:
        title: what the page calls it.
        command: words for `steppe compare`; {data} is the folder of the data, {made} that of files made here.
        methods: names, with {few} for the samples of the look.
        few: how many samples of a batch the cheap look takes.
        needs: a file or folder under {data} without which the task is left out.
        linear: words for a network without what the task's adds; the page shows its base as one more baseline.
    """

    title: str
    command: str
    methods: str = ALL
    few: int = 4
    needs: str = ""
    linear: str = ""


ETT = "--task forecast:{data}/ett/ETTh1.csv --parts 8640,2880,2880 --lr-grid 0.0005,0.001 --rho 0.5,1 --tune-seeds 1"
SIGNALS = "--task mnist1d --lr-grid 0.005,0.01,0.02 --rho 0.1,0.2,0.3 --seeds 5"
TABLES = "--lr-grid 0.001,0.003,0.01 --seeds 10"

SUITE = {
    "mnist1d_cnn": Task("MNIST-1D, CNN", SIGNALS, linear="--model linear"),
    "mnist1d_mlp": Task("MNIST-1D, MLP", f"{SIGNALS} --model mlp", THREE),
    "mnist1d_gru": Task("MNIST-1D, GRU", f"{SIGNALS} --model suite_models:gru", THREE),
    "ett96": Task("ETTh1, 96 hours", f"{ETT} --horizon 96 --seeds 5", THREE, 8, "ett", "--model linear"),
    "ett720": Task("ETTh1, 720 hours", f"{ETT} --horizon 720 --seeds 5", THREE, 8, "ett", "--model linear"),
    "fashion_mixer": Task(
        "Fashion-MNIST 2,000, MLP-Mixer",
        "--task idx:{data}/fashion_mnist --labelled 2000 --model suite_models:mixer --optimizer adamw "
        "--lr-grid 0.001,0.003 --epochs 40 --rho 0.1,0.2 --seeds 3 --tune-seeds 1",
        THREE, needs="fashion_mnist",
    ),
    "diabetes": Task(
        "diabetes, MLP", f"--task table:{{made}}/diabetes.csv --target target {TABLES}", FOUR, linear="--model linear"
    ),
    "wine": Task(
        "wine, MLP", f"--task table:{{made}}/wine.csv --target cultivar {TABLES}", FOUR, linear="--model linear"
    ),
    "reviews": Task(
        "film reviews, bytes", "--task lm:{made}/reviews.txt --lr-grid 0.001,0.003 --seeds 3 --tune-seeds 1",
        THREE, 2, "sst2",
    ),
}  # fmt: skip


def make_files(data: Path, made: Path) -> None:
    """Write what `table:` and `lm:` read: scikit-learn's diabetes and wine as CSV, the sentences of SST-2 as a text."""
    from sklearn.datasets import load_diabetes, load_wine

    made.mkdir(parents=True, exist_ok=True)
    sick = load_diabetes(scaled=False)
    rows = [[*x, y] for x, y in zip(sick.data, sick.target, strict=True)]
    _table(made / "diabetes.csv", [*sick.feature_names, "target"], rows)
    wine = load_wine()
    rows = [[*x, ("barolo", "grignolino", "barbera")[y]] for x, y in zip(wine.data, wine.target, strict=True)]
    _table(made / "wine.csv", [*wine.feature_names, "cultivar"], rows)
    if (lines := data / "sst2" / "stsa.binary.train").is_file():
        words = [line.split(" ", 1)[1].strip() for line in lines.read_text("latin-1").splitlines()]
        (made / "reviews.txt").write_text("\n".join(words) + "\n", "utf-8")


def _table(path: Path, head: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def run(name: str, data: Path, folder: Path) -> None:
    """One task, and the same with the plainer network, each summary beside the command that makes it."""
    task = SUITE[name]
    methods = task.methods.format(few=task.few)
    _compare(name, f"{task.command} --methods {methods}", data, folder)
    if task.linear:
        # Only the base is wanted; a comparison needs a method, and SAM at one radius is the shortest.
        words = f"{task.command} {task.linear} --methods sam --rho {task.command.split('--rho ')[-1].split(',')[0][:4]}"
        _compare(f"{name}_linear", words, data, folder)


def _compare(name: str, command: str, data: Path, folder: Path) -> None:
    words = [word.format(data=data, made=folder / "made") for word in command.split()]
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    out = folder / name
    subprocess.run(
        [sys.executable, "-m", "steppe", "compare", *words, "--out", str(out)],
        check=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    kept = json.loads((out / "summary.json").read_text())
    kept = {"command": f"steppe compare {command.format(data='DATA', made='MADE')}"} | kept
    kept["task"] = kept["spec"]["task"] = next(w for w in kept["command"].split() if ":" in w or w == "mnist1d")
    kept["spec"]["out"] = ""
    target = HERE / "results" / f"suite_{name}.json"
    target.with_suffix(".part").write_text(json.dumps(kept, indent=1) + "\n")
    target.with_suffix(".part").replace(target)


def main() -> None:
    """Run the tasks that are named, or all whose data is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", choices=[[], *SUITE], help="which; all by default")
    parser.add_argument("--data", type=Path, default=Path(), help="folder with ett, fashion_mnist and sst2")
    parser.add_argument("--folder", type=Path, default=Path("results/suite"), help="where the runs are kept")
    given = parser.parse_args()
    make_files(given.data, given.folder / "made")
    for name in given.names or SUITE:
        if (needs := SUITE[name].needs) and not (given.data / needs).exists():
            print(f"{name}: left out, as --data has no {needs}")
        else:
            run(name, given.data, given.folder)


if __name__ == "__main__":
    main()
