"""The search for the front: which cheap method keeps SAM's gain, each tuned on the same budget, epochs included.

    python benchmarks/front.py --fashion FOLDER [--task NAME ...] [--arm NAME ...] [--jobs 2]     # goes on where it was
    python benchmarks/front.py --fashion FOLDER --again     # the choices that front.json keeps, without the search
    python benchmarks/front.py --summary                    # the tables alone

Every arm of every task gets the same budget: six configurations (three lengths of training at the middle value of its
knob, then three more values at the best length; the knob is the radius, the base's is the learning rate), two seeds
each, chosen by validation accuracy at the end. The choice is then run on all seeds. Baselines, of which the one with
the best test accuracy counts: the base so tuned, the same with twice the epochs, the same at every length that a method
may choose, and the task's own settings untuned; each of them at its end and stopped early. The labels of validation
examples are as noisy as those of the training set. Runs are kept one line each and never repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer

import steppe
from steppe.compare.data.models import build
from steppe.compare.engine import measure, run, spec
from steppe.schedule import Bernoulli

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
TUNE_SEEDS = (0, 1)
SEEDS = {"digits-few": 12, "fashion-1k": 12}
"""How many seeds a task is given, if not 6: more where six left SAM's gain just clear of zero."""
LENGTHS = (0.5, 1.0, 2.0)
FASHION = {"task": "idx:{fashion}", "labelled": 1000, "model": "mlp", "epochs": 20}
RESNET = FASHION | {"model": "small_resnet:resnet8", "epochs": 12, "batch_size": 50, "lr": 0.1}
TASKS: dict[str, dict[str, Any]] = {
    "digits-few": {"task": "digits-few", "epochs": 50},
    "fashion-1k-noisy": FASHION | {"noise": 0.2},
    "digits-noisy": {"task": "digits-noisy", "epochs": 10},
    "resnet-1k-noisy": RESNET | {"noise": 0.2},
    "fashion-10k-noisy": FASHION | {"labelled": 10000, "noise": 0.2, "epochs": 12, "batch_size": 100},
    "fashion-1k": FASHION,
    "resnet-1k": RESNET,
    "fashion-10k": FASHION | {"labelled": 10000, "epochs": 12, "batch_size": 100},
}
TIMED = {"fashion-1k, CNN": FASHION | {"model": "cnn"}}
"""Where only the time is measured: a step long enough for fixed costs not to count."""

Make = Callable[[nn.Module, Optimizer, float, int], "steppe.SharpnessAware | None"]
RADII, LONG_RADII = (0.1, 0.05, 0.2, 0.4), (1.0, 0.25, 0.5, 2.0)


def _rare(p: float, direction: steppe.ascent.Direction, look: steppe.Look | None = None) -> Make:
    """The ascent on a random share of the steps."""
    return lambda model, optimizer, knob, seed: steppe.SharpnessAware(
        model, optimizer, ascent=steppe.Ascent(knob, direction), look=look, schedule=Bernoulli(p), seed=seed
    )


ARMS: dict[str, tuple[tuple[float, ...], Make]] = {
    "base": ((1.0, 0.25, 0.5, 2.0), lambda m, o, k, s: None),
    "sam": (RADII, lambda m, o, k, s: steppe.SAM(m, o, rho=k, seed=s)),
    "msam": (LONG_RADII, lambda m, o, k, s: steppe.MSAM(m, o, rho=k, seed=s)),
    "few-1": (RADII, lambda m, o, k, s: steppe.SAM(m, o, rho=k, samples=1, seed=s)),
    "s2-sam": (RADII, lambda m, o, k, s: steppe.S2SAM(m, o, rho=k, seed=s)),
    "msam-half": (LONG_RADII, _rare(0.5, steppe.Momentum())),
    "few-1-half": (RADII, _rare(0.5, steppe.Gradient(), steppe.Look(1))),
    "few-1-quarter": ((0.2, 0.1, 0.4, 0.8), _rare(0.25, steppe.Gradient(), steppe.Look(1))),
    "look-sam": (RADII, lambda m, o, k, s: steppe.LookSAM(m, o, rho=k, push="natural", seed=s)),
}
"""Name -> values of the knob, the middle one first, and how it is made. The base's knob is a factor of its lr."""


def resolved(task: str, fashion: str, length: float = 1.0, factor: float = 1.0) -> spec.Spec:
    """The settings of a task with `length` times its epochs and `factor` times its learning rate."""
    given = {k: v.format(fashion=fashion) if isinstance(v, str) else v for k, v in (TASKS | TIMED)[task].items()}
    settings = spec.resolve(given | {"device": "cpu"})
    epochs = max(1, round(settings.epochs * length))
    return settings.model_copy(update={"epochs": epochs, "lr": settings.lr * factor})


def parts(settings: spec.Spec, arm: str, knob: float, seed: int, task: Any) -> tuple[Any, Any, Any]:
    """A fresh model, its optimizer and the arm's gradient."""
    torch.manual_seed(seed)
    model = build(settings.model, task)
    optimizer = run.make_optimizer(settings, model, None)
    return model, optimizer, ARMS[arm][1](model, optimizer, knob, seed)


def train(name: str, fashion: str, arm: str, length: float, knob: float, seed: int) -> dict[str, Any]:
    """One training; accuracies at its end and at the look with the best validation accuracy."""
    settings = resolved(name, fashion, length, knob if arm == "base" else 1.0)
    task = run.load_task(settings, seed)
    model, optimizer, sharp = parts(settings, arm, knob, seed, task)
    steps = settings.epochs * spec.steps_per_epoch(len(task.train), settings.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps)))
    counter, best, start, examples = measure.PassCounter(model), Best(), time.perf_counter(), 0
    order = run.batches(task, settings.batch_size, seed)
    for epoch, batches in zip(range(1, settings.epochs + 1), order, strict=False):
        for batch in batches:
            step(model, optimizer, sharp, batch)
            scheduler.step()
            examples += len(batch[1])
        if epoch % max(1, settings.epochs // 10) == 0 or epoch == settings.epochs:
            passes = counter.examples / examples
            val = best.look(model, task.val)
    found = {"val": val, "test": measure.accuracy(model, task.test), "passes": passes}
    model.load_state_dict(best.weights)
    found |= {"early_val": best.accuracy, "early_test": measure.accuracy(model, task.test)}
    key = {"task": name, "arm": arm, "length": length, "knob": knob, "seed": seed, "epochs": settings.epochs}
    return key | found | {"seconds": time.perf_counter() - start}


class Best:
    """The weights with the best validation accuracy so far; of equals the earliest."""

    accuracy = -1.0
    weights: dict[str, torch.Tensor]

    def look(self, model: nn.Module, val: Any) -> float:
        """Measure, and keep the weights if they are the best."""
        accuracy = measure.accuracy(model, val)
        if accuracy > self.accuracy:
            self.accuracy, self.weights = accuracy, {k: v.detach().clone() for k, v in model.state_dict().items()}
        return accuracy


def step(model: nn.Module, optimizer: Optimizer, sharp: Any, batch: tuple[Any, torch.Tensor]) -> None:
    """One step of an ordinary loop."""

    def loss_of(part: tuple[Any, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(part[0]), part[1])

    if sharp is None:
        loss_of(batch).backward()
    else:
        sharp.backward(loss_of, batch)
    optimizer.step()
    optimizer.zero_grad()


def seeds(task: str) -> range:
    """The seeds of a task's figures."""
    return range(SEEDS.get(task, 6))


Choices = dict[tuple[str, str], tuple[float, float]]
"""(task, arm) -> the length and knob that a search chose."""


def kept_choices(record: dict[str, Any]) -> Choices:
    """What an earlier search chose, from its summary."""
    found: Choices = {}
    for task, part in record["tasks"].items():
        found[task, "base"] = part["base"]["length"], part["base"]["lr_factor"]
        found |= {(task, row["arm"]): (row["length"], row["knob"]) for row in part["rows"]}
    return found


class Runs:
    """The runs of one arm on one task: a file with a line each. Without `fashion` none is made, only looked up."""

    def __init__(self, folder: Path, task: str, arm: str, fashion: str | None) -> None:
        self.path = folder / f"{task}__{arm}.jsonl"
        self.task, self.arm, self.fashion = task, arm, fashion
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.done = {self._key(r["length"], r["knob"], r["seed"]): r for r in map(json.loads, lines)}

    @staticmethod
    def _key(length: float, knob: float, seed: int) -> tuple[float, float, int]:
        return (length, knob, seed)

    def get(self, length: float, knob: float, seed: int) -> dict[str, Any]:
        """The record of a run, made if it is not there."""
        key = self._key(length, knob, seed)
        if key not in self.done:
            if self.fashion is None:
                raise KeyError(key)
            record = train(self.task, self.fashion, self.arm, length, knob, seed)
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self.done[key] = record
        return self.done[key]

    def score(self, length: float, knob: float) -> float:
        """Mean validation accuracy of a configuration over the tune seeds."""
        return sum(self.get(length, knob, seed)["val"] for seed in TUNE_SEEDS) / len(TUNE_SEEDS)

    def choose(self, kept: Choices | None = None) -> tuple[float, float]:
        """What is kept, or the best length at the middle knob, then the best knob there: six configurations."""
        if kept is not None:
            return kept[self.task, self.arm]
        knobs = ARMS[self.arm][0]
        length = max(LENGTHS, key=lambda x: (self.score(x, knobs[0]), -x))
        return length, max(knobs, key=lambda x: (self.score(length, x), -x))


def baselines(length: float, knob: float) -> dict[str, tuple[float, float]]:
    """Name -> (length, learning rate's factor) of the bases beside which a method is judged, each of them once."""
    named = {"tuned": (length, knob), "twice": (2 * length, knob), "own settings": (1.0, 1.0)}
    found: dict[str, tuple[float, float]] = {}
    for name, config in (named | {f"length {x:g}": (x, knob) for x in LENGTHS}).items():
        if config not in found.values():
            found[name] = config
    return found


Job = tuple[str, str, str, str, Choices | None]


def study(job: Job) -> str:
    """Everything of one arm on one task."""
    torch.set_num_threads(1)
    folder, task, arm, fashion, kept = job
    runs = Runs(Path(folder), task, arm, fashion)
    length, knob = runs.choose(kept)
    for seed in seeds(task):
        for found in baselines(length, knob).values() if arm == "base" else [(length, knob)]:
            runs.get(*found, seed)
    return f"{task} {arm}: {length:g} x epochs, knob {knob:g}"


def jobs(given: argparse.Namespace, kept: Choices | None) -> Iterator[Job]:
    """Arm after arm of every task; of those with a kept choice, if choices are kept."""
    for task in given.task or TASKS:
        for arm in given.arm or ARMS:
            if kept is None or (task, arm) in kept:
                yield str(given.folder), task, arm, given.fashion, kept


def main() -> None:
    """Run what is missing, then write the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fashion", default="", help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--task", action="append", choices=TASKS, help="which; all by default")
    parser.add_argument("--arm", action="append", choices=ARMS, help="which; all by default")
    parser.add_argument("--folder", type=Path, default=Path("results/front"), help="where the runs are kept")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--summary", action="store_true", help="only summarise what is there")
    parser.add_argument("--again", action="store_true", help="run the choices of results/front.json, no search")
    given = parser.parse_args()
    chosen = given.task or list(TASKS)
    if not (given.summary or given.fashion or all(task.startswith("digits") for task in chosen)):
        parser.error("--fashion is needed: the folder of Fashion-MNIST's idx files; or choose --task digits-few")
    given.folder.mkdir(parents=True, exist_ok=True)
    out = HERE / "results" / "front.json"
    kept = kept_choices(json.loads(out.read_text())) if given.again else None
    if not given.summary:
        with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
            for line in pool.imap_unordered(study, jobs(given, kept), chunksize=1):
                print(line, flush=True)
    from front_summary import write

    write(given.folder, out, kept, given.fashion)


if __name__ == "__main__":
    main()
