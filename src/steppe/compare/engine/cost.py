"""What each method of a comparison costs beside the base: time and peak memory of a training step, as ratios.

Base and methods take turns after a warm-up; the share of steps that ascend is that of the real runs. Memory is
everything a fresh model, optimizer and method hold at the worst moment of a few steps, activations included; the data
itself does not count.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Collection, Mapping
from statistics import median
from typing import Any

from steppe._command.choices import BASE
from steppe._command.meter import Clock, peak, take_turn, weighted
from steppe._command.pool import Tell
from steppe._command.ranks import agree, ranks
from steppe.compare.data.examples import Task
from steppe.compare.engine.run import Trainer, batches, load_task, make_trainer
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec, steps_per_epoch

WARM_UP, BLOCK, LEAST, MOST = 6, 20, 60, 240
"""Turns before the clock counts; turns at one place of the schedule; fewest and most turns."""

BUDGET = 12.0
"""Seconds for all turns, unless the fewest take longer."""

RARE = 0.05
"""A share of the steps that no figure needs to know the time of: it changes the whole's by less than times scatter."""

MEMORY_STEPS = 6
"""Steps watched at the start, the middle and the end of the schedule."""


def measure(
    spec: Spec, runs: list[Run], shares: Mapping[str, float], tell: Tell = lambda share: None
) -> dict[str, Any]:
    """The content of `cost.json` (without its key).

    Args:
        spec: the settings.
        runs: one per method, with its chosen value; all of the same seed.
        shares: method -> share of steps that ascended in the real runs.
        tell: progress.
    """
    task = load_task(spec, runs[0].seed)
    per_epoch = steps_per_epoch(len(task.train), spec.batch_size)
    base = Run(BASE, None, runs[0].seed, lr=runs[0].lr, epochs=runs[0].epochs)
    steps = {run.method: run.steps(spec, per_epoch) for run in [base, *runs]}
    trainers = {run.method: make_trainer(spec, task, run, steps[run.method]) for run in [base, *runs]}
    clocks = {method: Clock(each.step, each.ascended, by_processor(spec)) for method, each in trainers.items()}
    _take_turns(spec, task, list(trainers.values()), list(clocks.values()), list(steps.values()), tell)
    memory = {run.method: peak_memory(spec, task, run, steps[run.method]) for run in [base, *runs]}
    ratios = {method: each / memory[BASE] for method, each in memory.items()}
    return {
        "base": of_base(clocks[BASE].seconds[False], memory[BASE]), "turns": len(clocks[BASE].seconds[False]),
        "methods": {r.method: of_method(r, clocks[r.method], shares[r.method], ratios[r.method]) for r in runs},
        "clock": clock_of(spec),
    }  # fmt: skip


def of_base(seconds: Collection[float], memory: int | None = None) -> dict[str, Any]:
    """What a step of the base costs; None where nothing is known."""
    return {
        "label": BASE, "step_ms": 1e3 * median(seconds) if seconds else None, "memory_bytes": memory, "passes": 1.0
    }  # fmt: skip


def of_method(run: Run, clock: Clock, share: float, memory: float | None = None) -> dict[str, Any]:
    """What a method costs, each kind of step in its share: ratios to the base, and the time of a step.

    No times where one kind of step is not rare in the real runs and was never seen here: they would be the other's.
    """
    unseen = [part for kind, part in ((True, share), (False, 1 - share)) if not clock.seconds[kind]]
    known = max(unseen, default=0.0) <= RARE
    return {
        "label": run.label, "time_ratio": weighted(clock.fair, share) if known else None, "memory_ratio": memory,
        "passes": 1 + share, "step_ms": 1e3 * weighted(clock.seconds, share)["median"] if known else None,
    }  # fmt: skip


def by_processor(spec: Spec) -> bool:
    """Whether times are the processor's, in which other programs do not show; nor would the work of a GPU."""
    return spec.device == "cpu" and ranks() == 1


def clock_of(spec: Spec) -> str:
    """The same in a word, for `cost.json`."""
    return "processor" if by_processor(spec) else "wall"


def _take_turns(
    spec: Spec, task: Task, trainers: list[Trainer], clocks: list[Clock], steps: list[int], tell: Tell
) -> None:
    """Turns in blocks that are spread over the schedule of each, from its first step to its last."""
    stream = itertools.chain.from_iterable(batches(task, spec.batch_size, 0))
    start = time.perf_counter()
    for _ in range(WARM_UP):
        take_turn(spec.device, clocks, next(stream), keep=False)
    blocks = agree(_blocks((time.perf_counter() - start) / WARM_UP))  # ranks that took more would wait for the others
    for block in range(blocks):
        for trainer, length in zip(trainers, steps, strict=True):
            forward(trainer, block * max(0, length - BLOCK) // max(1, blocks - 1))
        for _ in range(BLOCK):
            take_turn(spec.device, clocks, next(stream))
        tell((block + 1) / blocks)


def _blocks(turn: float) -> int:
    """How many blocks of turns of `turn` seconds fit into the budget."""
    return round(min(max(BUDGET / turn, LEAST), MOST) / BLOCK)


def forward(trainer: Trainer, step: int) -> None:
    """Bring the schedule to optimizer step `step`: steps without a gradient count and move no weight."""
    trainer.optimizer.zero_grad()
    at = trainer.sharp if hasattr(trainer.sharp, "step") else None  # a user's own may have no place in a schedule
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "BAR: none of the")  # as is meant here
        while at is not None and at.step < step:
            trainer.optimizer.step()


def peak_memory(spec: Spec, task: Task, run: Run, steps: int) -> int:
    """Bytes held at the worst moment of `run`'s first steps, from an empty start."""

    def work() -> None:
        trainer = make_trainer(spec, task, run, steps)
        for first in (0, steps // 2, max(0, steps - MEMORY_STEPS)):
            forward(trainer, first)
            stream = itertools.chain.from_iterable(batches(task, spec.batch_size, 0))
            for batch in itertools.islice(stream, MEMORY_STEPS):
                trainer.step(batch)

    return peak(work, spec.device)
