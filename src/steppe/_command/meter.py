"""Time and peak memory of steps that take turns: what `compare` and `bench` say a method costs beside the base.

Time: all contenders take turns, one step each, in one process with one thread, so that whatever else slows the machine
slows all alike. Each turn gives a ratio to the base's step of the same turn. Steps that ascend and steps that do not
are kept apart (median and quartiles each) and weighted by the share of steps that ascend: periodic and random methods
are not at the mercy of which steps were measured.

Memory: on CUDA the allocator's own peak; on the CPU the running sum of every allocation and release that torch's
profiler reports (`profile_memory`).
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Times = dict[bool, list[float]]
"""Figures of the steps that did not ascend and of those that did."""


def _times() -> Times:
    return {False: [], True: []}


@dataclass
class Clock:
    """Step times of one method, in seconds, beside the base's of the same turn; by whether the step ascended.

    `busy` are ratios of processor time: what another process takes away from this one is not in them. `processor` says
    whether `seconds` and `fair`, what is shown where there is room for one figure, are of it.
    """

    step: Callable[[Any], Any]
    ascended: Callable[[], bool]
    processor: bool = False
    ratios: Times = field(default_factory=_times)
    seconds: Times = field(default_factory=_times)
    busy: Times = field(default_factory=_times)

    def note(self, own: tuple[float, float], base: tuple[float, float]) -> None:
        """Wall-clock and processor seconds of the latest step, and of the base's in the same turn."""
        ascended = self.ascended()
        self.ratios[ascended].append(own[0] / base[0])
        self.seconds[ascended].append(own[1 if self.processor else 0])
        self.busy[ascended].append(own[1] / base[1])

    @property
    def fair(self) -> Times:
        """Ratios of processor time or of the clock's, as `processor` says."""
        return self.busy if self.processor else self.ratios


def take_turn(device: str, clocks: list[Clock], batch: Any, keep: bool = True) -> None:
    """One step of each, one after the other; all are compared with the first."""
    times = [taken(device, lambda clock=clock: clock.step(batch)) for clock in clocks]  # type: ignore[misc]
    for clock, own in zip(clocks, times, strict=True) if keep else ():
        clock.note(own, times[0])


def taken(device: str, work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that a piece of work takes by the clock, and of the processor."""
    _wait_for(device)
    start, busy = time.perf_counter(), time.process_time()
    work()
    _wait_for(device)
    return time.perf_counter() - start, time.process_time() - busy


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def weighted(values: Mapping[bool, list[float]], share: float) -> dict[str, float]:
    """Median and quartiles of both kinds of step, weighted by the share of steps that ascend."""
    found = {kind: quartiles(seen) for kind, seen in values.items() if seen}
    if len(found) == 1:
        return next(iter(found.values()))
    return {name: share * found[True][name] + (1 - share) * found[False][name] for name in ("median", "low", "high")}


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles; of one value itself."""
    if len(values) < 2:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def peak(work: Callable[[], Any], device: str) -> int:
    """Bytes held at the worst moment of `work`, beside what was there before."""
    gc.collect()  # what lies about now must not be released while a peak is measured
    return _peak_on_cpu(work) if device == "cpu" else _peak_on_cuda(work, device)


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
