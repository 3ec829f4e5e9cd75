"""Time and memory of contenders beside the base, which takes the first step of every turn."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from steppe._command.choices import Choice
from steppe._command.devices import threads
from steppe._command.meter import Clock, peak, take_turn, weighted
from steppe._command.pool import Tell
from steppe._command.provenance import finished, made_with
from steppe.bench.contender import OPTIMIZERS, Contender, base, ours
from steppe.bench.subject import Problem, Subject, check_counts
from steppe.bench.tasked import Tasked

SCHEMA = 1
MEMORY_STEPS = 3
LEAST, MOST = 10, 200
"""Fewest and most turns, where their number is not given."""

SLOW = 0.2
"""Seconds of a base step from which on at most two contenders share one, so that it lies close by in time."""

BRIEF = 2.0
"""Seconds of a round below which there is time for a second one before the clock counts."""

Maker = Callable[[Problem], Contender]


@dataclass(frozen=True)
class Request:
    """How to measure."""

    steps: Annotated[int | None, Field(description="Steps of each contender (as the budget allows, 10 to 200).")] = None
    row: Annotated[
        int, Field(description="Steps of a turn without waiting for a GPU; 1: a loop that reads every loss.")
    ] = 1
    budget: Annotated[float, Field(description="Seconds for the steps of all contenders.")] = 60.0
    threads: Annotated[int, Field(description="Threads of torch on the CPU.")] = 1
    optimizer: Annotated[str, Field(description="Base optimizer: sgd (momentum 0.9) or adamw.")] = "sgd"
    memory: Annotated[bool, Field(description="Measure memory too: three steps more of every contender.")] = True

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, row=self.row, threads=self.threads)
        if not 0 < self.budget < math.inf:
            raise ValueError(f"budget must be a number above 0, got {self.budget}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")


def makers(choices: Sequence[Choice], optimizer: str) -> dict[str, Maker]:
    """Methods of steppe by their names."""
    return {choice.text: partial(ours, choice=choice, optimizer=optimizer) for choice in choices}


def measure(
    subject: Subject | Tasked, contenders: Mapping[str, Maker], settings: Request, tell: Tell = lambda share: None
) -> dict[str, Any]:
    """The record of a benchmark, ready for JSON.

    Args:
        subject: what is trained.
        contenders: name -> builder; the base is added.
        settings: how.
        tell: told the share that is done.

    Returns:
        `base` and `methods` (by name) with `time_ratio` (wall clock) and `busy_ratio` (processor time), each median and
        quartiles and weighted by the share of steps that ascend; `passes`; `memory_bytes` at the worst moment and
        `buffers`, what that is above the base's, in sizes of the trained parameters.
    """
    with threads(settings.threads):
        return _measured(subject, {"base": partial(base, optimizer=settings.optimizer), **contenders}, settings, tell)


def _measured(subject: Subject | Tasked, every: Mapping[str, Maker], settings: Request, tell: Tell) -> dict[str, Any]:
    problems = {name: subject.make() for name in every}
    made = {name: maker(problems[name]) for name, maker in every.items()}
    clocks, turns = _timed(subject.device, list(made.values()), problems["base"].batch, settings, tell)
    sizes = _sizes(problems["base"])
    load = _load()
    pairs = zip(made.items(), clocks, strict=True)
    rows = {name: _row(one, clock, _share(one, clock), settings.row) for (name, one), clock in pairs}
    del problems, made, clocks, pairs
    if settings.memory:
        _add_memory(rows, subject, every, sizes["trained_bytes"])
    return {
        "schema": SCHEMA, "subject": subject.as_dict() | sizes,
        "settings": asdict(settings) | {"turns": turns},
        "provenance": provenance(subject.device, settings.threads) | load, "base": rows.pop("base"), "methods": rows,
    }  # fmt: skip


def _timed(
    device: str, contenders: list[Contender], batch: Any, settings: Request, tell: Tell
) -> tuple[list[Clock], int]:
    """Turns of all contenders, in groups behind a base step of their own; both kinds of step come round alternately."""
    clocks = [Clock(partial(one.take, row=settings.row), one.ascended) for one in contenders]
    took, turn = 0.0, 0
    for one in contenders:
        one.settle(batch)
    while turn < 2 and took < BRIEF:  # warm-up: of slow models one round is enough
        start = time.perf_counter()
        _round(device, contenders, clocks, batch, turn, len(contenders), keep=False)
        took, turn = time.perf_counter() - start, turn + 1
    size = 2 if took / sum(1 + bool(c.share) for c in contenders) > SLOW else len(contenders)
    turns = math.ceil((settings.steps or 0) / settings.row) or round(min(max(settings.budget / took, LEAST), MOST))
    turns = max(turns, *(len(one.kinds) for one in contenders))  # of each kind of step one
    for turn in range(turns):
        _round(device, contenders, clocks, batch, turn, size)
        tell((turn + 1) / turns)
    return clocks, turns


def _round(
    device: str, contenders: list[Contender], clocks: list[Clock], batch: Any, turn: int, size: int, keep: bool = True
) -> None:
    for one in contenders:
        one.place(one.kinds[turn % len(one.kinds)])
    order = clocks[1:] if turn % 4 < 2 else clocks[:0:-1]
    for at in range(0, max(1, len(order)), size):
        take_turn(device, [clocks[0], *order[at : at + size]], batch, keep)


def _share(contender: Contender, clock: Clock) -> float:
    """The share of steps that ascend: the schedule's, or what was seen where only the steps tell.

    Where all were of one kind it is that, whatever the schedule says: Tail SAM's radius is zero at a constant rate.
    """
    if len(contender.passes) == 1:
        return float(next(iter(contender.passes)))
    if contender.share is not None:
        return contender.share
    seen = {kind: len(values) for kind, values in clock.ratios.items()}
    return seen[True] / (seen[True] + seen[False])


def _row(contender: Contender, clock: Clock, share: float, steps: int) -> dict[str, Any]:
    passes = contender.passes
    return {
        "label": contender.label, "ascended_share": share,
        "passes": share * passes.get(True, 0.0) + (1 - share) * passes.get(False, 0.0),
        "time_ratio": weighted(clock.ratios, share), "busy_ratio": weighted(clock.busy, share),
        "step_ms": {name: 1e3 * value / steps for name, value in weighted(clock.seconds, share).items()},
        "kinds": {"ascends" if kind else "does_not": _kind(clock.ratios[kind], steps) for kind in passes},
        "buffers_stated": contender.stated,
    }  # fmt: skip


def _kind(ratios: list[float], steps: int) -> dict[str, float]:
    """Of the turns of one kind: how many steps they are, and their typical ratio."""
    return {"steps": len(ratios) * steps} | ({"time_ratio": median(ratios)} if ratios else {})


def _add_memory(rows: dict[str, Any], subject: Subject | Tasked, every: Mapping[str, Maker], unit: int) -> None:
    for name, maker in every.items():
        gc.collect()  # what lies about now must not be released while a peak is measured
        problem = subject.make()
        above = peak(partial(_few_steps, maker, problem), subject.device)
        rows[name]["memory_bytes"] = above + _held(problem.model)
        del problem
    for row in rows.values():
        row["memory_ratio"] = row["memory_bytes"] / rows["base"]["memory_bytes"]
        row["buffers"] = (row["memory_bytes"] - rows["base"]["memory_bytes"]) / unit


def _held(model: nn.Module) -> int:
    """Bytes of its weights and buffers; weights that are tied lie there once."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _few_steps(maker: Maker, problem: Problem) -> None:
    contender = maker(problem)
    contender.settle(problem.batch)
    for turn in range(MEMORY_STEPS):
        contender.place(contender.kinds[turn % len(contender.kinds)])
        contender.step(problem.batch)


def _sizes(problem: Problem) -> dict[str, Any]:
    every = list(problem.model.parameters())
    trained = [p for p in every if p.requires_grad]
    return {
        "parameters": sum(p.numel() for p in every), "trained": sum(p.numel() for p in trained),
        "trained_tensors": len(trained), "trained_bytes": sum(p.numel() * p.element_size() for p in trained),
    }  # fmt: skip


def _load() -> dict[str, Any]:
    """How busy the machine was: other processes show in wall-clock ratios."""
    return {"load_average": [round(v, 2) for v in os.getloadavg()]} if hasattr(os, "getloadavg") else {}


def provenance(device: str, threads: int) -> dict[str, Any]:
    """What a figure was made with."""
    return made_with(device) | {"threads": threads, "finished": finished()}
