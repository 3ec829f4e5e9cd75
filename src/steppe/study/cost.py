"""What a method costs beside the base: time and peak memory of a training step, measured, as ratios.

Time: base and methods take turns, one step each, in one process with one thread, after a warm-up, so that whatever
else slows the machine slows all alike. Each turn gives a ratio to the base's step of the same turn. Steps that ascend
and steps that do not are kept apart (median and quartiles each) and weighted by the share of steps that ascended in
the real runs: periodic and random methods are not at the mercy of which steps were measured.

Memory: everything a fresh model, optimizer and method hold at the worst moment of a few steps, activations included.
On CUDA the allocator's own peak; on the CPU the running sum of every allocation and release that torch's profiler
reports (`profile_memory`). The data itself does not count.
"""

from __future__ import annotations

import gc
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from steppe.study.data import Task
from steppe.study.parallel import agree
from steppe.study.plan import Run
from steppe.study.run import Tell, Trainer, batches, load_task, make_trainer
from steppe.study.spec import Spec, steps_per_epoch

WARM_UP, BLOCK, LEAST, MOST = 6, 20, 60, 240
"""Turns before the clock counts; turns at one place of the schedule; fewest and most turns."""

BUDGET = 12.0
"""Seconds for all turns, unless the fewest take longer."""

MEMORY_STEPS = 6
"""Steps watched at the start, the middle and the end of the schedule."""


Times = dict[bool, list[float]]
"""Figures of the steps that did not ascend and of those that did."""


def _times() -> Times:
    return {False: [], True: []}


@dataclass
class Clock:
    """Step times of one method, in seconds, beside the base's of the same turn; by whether the step ascended.

    `busy` are ratios of processor time: what another process takes away from this one is not in them.
    """

    step: Callable[[Any], Any]
    ascended: Callable[[], bool]
    ratios: Times = field(default_factory=_times)
    seconds: Times = field(default_factory=_times)
    busy: Times = field(default_factory=_times)

    def note(self, own: tuple[float, float], base: tuple[float, float]) -> None:
        """Wall-clock and processor seconds of the latest step, and of the base's in the same turn."""
        ascended = self.ascended()
        self.ratios[ascended].append(own[0] / base[0])
        self.seconds[ascended].append(own[0])
        self.busy[ascended].append(own[1] / base[1])


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
    steps = spec.steps(steps_per_epoch(len(task.train), spec.batch_size))
    base = Run("base", None, runs[0].seed, lr=runs[0].lr)
    trainers = {run.method: make_trainer(spec, task, run, steps) for run in [base, *runs]}
    clocks = {method: Clock(trainer.step, trainer.ascended) for method, trainer in trainers.items()}
    _take_turns(spec, task, list(trainers.values()), list(clocks.values()), steps, tell)
    memory = {run.method: peak_memory(spec, task, run, steps) for run in [base, *runs]}
    methods = {
        run.method: {
            "label": run.label, "time_ratio": weighted(clocks[run.method].ratios, shares[run.method]),
            "memory_ratio": memory[run.method] / memory["base"], "passes": 1 + shares[run.method],
            "step_ms": 1e3 * weighted(clocks[run.method].seconds, shares[run.method])["median"],
        }
        for run in runs
    }  # fmt: skip
    step_ms = 1e3 * median(clocks["base"].seconds[False])
    return {
        "base": {"label": base.label, "step_ms": step_ms, "memory_bytes": memory["base"], "passes": 1.0},
        "methods": methods, "turns": len(clocks["base"].seconds[False]),
    }  # fmt: skip


def _take_turns(spec: Spec, task: Task, trainers: list[Trainer], clocks: list[Clock], steps: int, tell: Tell) -> None:
    """Turns in blocks that start at places spread over the schedule."""
    stream = itertools.chain.from_iterable(batches(task, spec.batch_size, 0))
    start = time.perf_counter()
    for _ in range(WARM_UP):
        take_turn(spec.device, clocks, next(stream), keep=False)
    blocks = agree(_blocks((time.perf_counter() - start) / WARM_UP))  # ranks that took more would wait for the others
    for block in range(blocks):
        for trainer in trainers:
            forward(trainer, block * steps // blocks)
        for _ in range(BLOCK):
            take_turn(spec.device, clocks, next(stream))
        tell((block + 1) / blocks)


def _blocks(turn: float) -> int:
    """How many blocks of turns of `turn` seconds fit into the budget."""
    return round(min(max(BUDGET / turn, LEAST), MOST) / BLOCK)


def take_turn(device: str, clocks: list[Clock], batch: Any, keep: bool = True) -> None:
    """One step of each, one after the other; all are compared with the first."""
    times = [_seconds(device, lambda clock=clock: clock.step(batch)) for clock in clocks]  # type: ignore[misc]
    for clock, own in zip(clocks, times, strict=True) if keep else ():
        clock.note(own, times[0])


def _seconds(device: str, work: Callable[[], Any]) -> tuple[float, float]:
    _wait_for(device)
    start, busy = time.perf_counter(), time.process_time()
    work()
    _wait_for(device)
    return time.perf_counter() - start, time.process_time() - busy


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def forward(trainer: Trainer, step: int) -> None:
    """Bring the schedule to optimizer step `step`: steps without a gradient count and move no weight."""
    trainer.optimizer.zero_grad()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "BAR: none of the")  # as is meant here
        while trainer.sharp is not None and trainer.sharp.step < step:
            trainer.optimizer.step()


def weighted(values: Mapping[bool, list[float]], share: float) -> dict[str, float]:
    """Median and quartiles of both kinds of step, weighted by the share of steps that ascend."""
    found = {kind: _quartiles(seen) for kind, seen in values.items() if seen}
    if len(found) == 1:
        return next(iter(found.values()))
    return {name: share * found[True][name] + (1 - share) * found[False][name] for name in ("median", "low", "high")}


def _quartiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def peak_memory(spec: Spec, task: Task, run: Run, steps: int) -> int:
    """Bytes held at the worst moment of `run`'s first steps, from an empty start."""

    def work() -> None:
        trainer = make_trainer(spec, task, run, steps)
        for first in (0, steps // 2, max(0, steps - MEMORY_STEPS)):
            forward(trainer, first)
            for batch in _some(spec, task):
                trainer.step(batch)

    return peak(work, spec.device)


def peak(work: Callable[[], Any], device: str) -> int:
    """Bytes held at the worst moment of `work`, beside what was there before."""
    gc.collect()  # what lies about now must not be released while a peak is measured
    return _peak_on_cpu(work) if device == "cpu" else _peak_on_cuda(work, device)


def _some(spec: Spec, task: Task) -> Iterator[Any]:
    return itertools.islice(itertools.chain.from_iterable(batches(task, spec.batch_size, 0)), MEMORY_STEPS)


def _peak_on_cuda(work: Callable[[], None], device: str) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(work: Callable[[], None]) -> int:
    """Highest running sum of the allocations and releases inside `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events), default=0)
