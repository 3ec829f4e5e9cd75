"""Runs of the study harness that are no comparison: a list of them, one after the other, kept as they finish.

Used by the other scripts here. A finished run is read again and not repeated, so a script that was broken off goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from steppe.compare.engine.run import train
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec, resolve
from steppe.compare.engine.store import Store

FASHION = "idx:fashion-mnist"
"""What results call the task that reads Fashion-MNIST's files from a folder of the user's own."""


def settings(task: str, fashion: str, **given: Any) -> Spec:
    """The study settings of `task`, its own recipe where nothing else is given; one thread on the CPU."""
    torch.set_num_threads(1)
    return resolve({"task": f"idx:{fashion}" if task == FASHION else task, "device": "cpu", **given})


def records(spec: Spec, runs: Iterable[Run], folder: Path) -> list[dict[str, Any]]:
    """The record of every run, in the order given; those that `folder` lacks are trained now."""
    spec_hash, runs = spec.hash(), list(runs)
    store = Store(folder, spec_hash)
    store.open()
    return [_record(spec, run, run.id(spec_hash), store) for run in runs]


def _record(spec: Spec, run: Run, id_: str, store: Store) -> dict[str, Any]:
    kept = store.load([id_])
    if kept:
        return kept[id_]
    start = time.perf_counter()
    record = store.save(id_, "sweep", train(spec, run))
    seconds = time.perf_counter() - start
    score = record[f"test_{record.get('metric', {}).get('name', 'accuracy')}"]
    print(f"{run.label} rho {run.rho} seed {run.seed}: {score:.4f} in {seconds:.1f} s", file=sys.stderr)
    return record
