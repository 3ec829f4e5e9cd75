"""SIGKILL of a training process at random points: resumed from its last checkpoint, it ends as if nothing had been.

    python benchmarks/kill_training.py                      # 200 points; benchmarks/results/kill_training.json
    python benchmarks/kill_training.py --points 10 --loops plain,ddp --out kill.json

Points are spread evenly over the loops and drawn from the seed. A process kills itself in the middle of an ascent
(weights perturbed), of a checkpoint's writing, of the optimizer's step (at a drawn call within), or is killed from
outside after a drawn time. Compared bit for bit with the undisturbed run: weights, buffers, state of optimizer, loss
scaler and method, random generators, each step's decision and loss, and every checkpoint that a reader would find.
Exit code 1 unless all are equal.
"""

import argparse
import importlib
import json
import os
import platform
import random
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer of a process imports it: here, once, before the points are forked
from kill_loops.loop import Loop
from kill_loops.methods import NAMES
from kill_loops.point import KINDS, Outcome, Whole, point, share, undisturbed

import steppe

LOOPS = {
    "plain": ("own", "PLAIN"), "fp16": ("own", "FP16"), "ddp": ("own", "DDP"), "trainer": ("trainer", "TRAINER"),
    "lightning": ("lightning_fit", "LIGHTNING"),
}  # fmt: skip
OUT = Path(__file__).parent / "results" / "kill_training.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill training processes, resume them, compare bit for bit.")
    parser.add_argument("--points", type=int, default=200, help="in all, at least 1 (default 200)")
    parser.add_argument("--loops", default=",".join(LOOPS), help="some of " + ",".join(LOOPS))
    parser.add_argument("--out", type=Path, default=OUT, help="the JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the points (default 0)")
    given = parser.parse_args()
    unknown = [name for name in given.loops.split(",") if name not in LOOPS]
    if unknown or given.points < 1:
        parser.error(f"--loops {given.loops} --points {given.points}: expected some of {','.join(LOOPS)}, 1 or more")
    return given


def load(name: str) -> Loop:
    """Hosts are imported here, once: the processes of all points are forked from this one."""
    module, attribute = LOOPS[name]
    return getattr(importlib.import_module(f"kill_loops.{module}"), attribute)


def run(loop: Loop, numbers: list[int], seed: int, folder: Path) -> list[Outcome]:
    """The points with these numbers, of one loop."""
    whole: dict[str, Whole] = {}
    outcomes = []
    methods = [NAMES[n % len(NAMES)] for n in numbers]
    random.Random(f"{seed}:{loop.title}").shuffle(methods)
    for n, method in zip(numbers, methods, strict=True):
        kind = KINDS[n % len(KINDS)]
        if method not in whole:
            whole[method] = undisturbed(loop, folder / f"whole-{method}", method)
        draw = random.Random(f"{seed}:{loop.title}:{n}")
        outcomes.append(point(loop, folder / str(n), method, kind, whole[method], draw))
        if outcomes[-1].differs:
            print(f"{loop.title}, point {n}: {outcomes[-1]}", flush=True)
        if len(outcomes) % 10 == 0 or n == numbers[-1]:
            equal = sum(not out.differs for out in outcomes)
            print(f"{loop.title}: {equal} of {len(outcomes)} equal ({len(numbers)} to do)", flush=True)
    return outcomes


def counts(outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "points": len(outcomes),
        "equal": sum(not out.differs for out in outcomes),
        "killed_mid_ascent": share(outcomes, "ascent"),
        "killed_mid_checkpoint": share(outcomes, "checkpoint"),
        "killed_mid_update": share(outcomes, "update"),
        "killed_elsewhere": share(outcomes, ""),
        "killed_from_outside": sum(out.kind == "anywhere" for out in outcomes),
        "before_the_first_checkpoint": sum(out.loaded < 0 for out in outcomes),
        "left_an_unfinished_checkpoint": sum(out.unfinished > 0 for out in outcomes),
        "of_these_unreadable": sum(out.unreadable > 0 for out in outcomes),
        "torn_checkpoints_loaded": sum(out.torn_loaded for out in outcomes),
    }


def report(outcomes: list[Outcome], seconds: float, seed: int) -> dict[str, Any]:
    titles = list(dict.fromkeys(out.loop for out in outcomes))
    hosts = [name for name in ("transformers", "accelerate", "lightning") if name in sys.modules]
    return {
        **counts(outcomes),
        "loops": {title: counts([out for out in outcomes if out.loop == title]) for title in titles},
        "methods": {name: sum(out.method == name for out in outcomes) for name in NAMES},
        "seed": seed,
        "seconds": round(seconds, 1),
        "versions": {"steppe": steppe.__version__, "python": platform.python_version(), "torch": torch.__version__}
        | {name: version(name) for name in hosts},
        "platform": f"{platform.system()} {platform.machine()}",
        "kills": [asdict(out) for out in outcomes],
    }


def write(found: dict[str, Any], path: Path) -> None:
    """One kill a line."""
    kills = ",\n".join("  " + json.dumps(kill) for kill in found.pop("kills"))
    text = json.dumps(found, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text.removesuffix(chr(10) + "}")},\n "kills": [\n{kills}\n ]\n}}\n')


def main() -> None:
    given = arguments()
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    torch.set_num_threads(1)
    loops = [load(name) for name in given.loops.split(",")]
    began, outcomes = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for i, loop in enumerate(loops):
            numbers = list(range(len(range(i, given.points, len(loops)))))
            if numbers:
                outcomes += run(loop, numbers, given.seed, Path(folder) / str(i))
    found = report(outcomes, time.perf_counter() - began, given.seed)
    equal, seconds = found["equal"], found["seconds"]
    write(found, given.out)
    print(f"{equal} of {given.points} equal to the undisturbed run in {seconds} s; written to {given.out}")
    sys.exit(equal != given.points)


if __name__ == "__main__":
    main()
