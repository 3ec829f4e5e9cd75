"""What each method costs a script beside the base: its loops take turns, step by step, or its runs are compared.

Each method's script runs in a thread of its own, and one at a time: at every backward it hands over to the next. So
what is timed is all of a step, from one backward's begin to the next one's, as in comparisons of tasks; the script is
left as soon as there are turns enough. Where a script cannot run beside itself (it makes its model outside of the
function, fails in a thread, or has too few steps), the steps' processor times in the real runs are compared instead.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from steppe._command.choices import BASE
from steppe._command.meter import Clock, quartiles, take_turn
from steppe._command.pool import Tell
from steppe.compare.engine.cost import BLOCK, BUDGET, LEAST, MOST, WARM_UP, by_processor, clock_of, of_base, of_method
from steppe.compare.engine.runs import Run
from steppe.compare.engine.script import Enough, arguments, builder, follow
from steppe.compare.engine.spec import Spec
from steppe.compare.script.results import Figures
from steppe.compare.script.sharpen import Sharpen
from steppe.compare.script.source import load
from steppe.protocol import needs_of

Record = Mapping[str, Any]
_PATIENCE = 10.0
"""Seconds for a script to clean up behind itself."""


class CannotError(Exception):
    """The scripts cannot take turns; says why."""


def measure(
    spec: Spec, runs: list[Run], shares: Mapping[str, float], of_runs: Mapping[str, Any],
    tell: Tell = lambda share: None,
) -> dict[str, Any]:  # fmt: skip
    """The content of `cost.json` (without its key), as :func:`steppe.compare.engine.cost.measure` has it.

    `of_runs` is what the real runs say, where there can be no turns.
    """
    try:
        clocks = _turns(spec, runs, shares, int(of_runs["steps"]), tell)
    except CannotError as why:
        return _from_runs(runs, shares, of_runs, str(why)) | {"clock": clock_of(spec)}
    methods = {run.method: of_method(run, clocks[run.method], shares[run.method]) for run in runs}
    seconds = clocks[BASE].seconds[False]
    how = {"measured": "turns", "clock": clock_of(spec)}
    return {"base": of_base(seconds), "methods": methods, "turns": len(seconds)} | how


class Contender:
    """One method's script, in a thread that stands still at the begin of every backward until it is told to go on."""

    def __init__(self, spec: Spec, run: Run) -> None:
        script = load(str(spec.script))
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._left = False
        self.ended: str | None = None
        self.sharpen = Sharpen(builder(run), before=self._stop)
        figures = Figures(script, self.sharpen, spec.metric)
        self._thread = threading.Thread(target=self._run, args=(figures, arguments(script, spec, run)), daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def _run(self, figures: Figures, given: dict[str, Any]) -> None:
        try:
            follow(figures, given)
            self.ended = f"a run of the script has {self.sharpen.calls} steps only"
        except Enough:
            self.ended = "left"
        except BaseException as error:
            self.ended = f"in a thread, {error}"
        finally:
            self._stopped.release()

    def _stop(self) -> None:
        """At the begin of a backward: hand over."""
        if not self._left:
            self._stopped.release()
            self._go.acquire()
        if self._left:
            raise Enough

    def step(self, batch: Any = None) -> None:
        """Go on until the next backward begins.

        Raises:
            CannotError: the script ended instead.
        """
        if self.ended is None:
            self._go.release()
            self._stopped.acquire()
        if self.ended is not None:
            raise CannotError(self.ended)

    def ascended(self) -> bool:
        """Whether the latest step ran a pass at perturbed weights."""
        return bool(self.sharpen.sharp.last.ascended)

    def forward(self, step: int) -> None:
        """Bring the schedule to a step of the training, without a training."""
        sharp = self.sharpen.sharp
        if needs_of(sharp).passes:
            sharp.step = max(sharp.step, step)

    def leave(self) -> None:
        """End the script."""
        self._left = True
        if self.ended is None:
            self._go.release()
        self._thread.join(_PATIENCE)


def _turns(spec: Spec, runs: list[Run], shares: Mapping[str, float], steps: int, tell: Tell) -> dict[str, Clock]:
    base = Run(BASE, None, runs[0].seed, lr=runs[0].lr)
    contenders: dict[str, Contender] = {}
    with contextlib.ExitStack() as at_end:
        nowhere = at_end.enter_context(open(os.devnull, "w", encoding="utf-8"))
        at_end.enter_context(contextlib.redirect_stdout(nowhere))
        at_end.enter_context(contextlib.redirect_stderr(nowhere))
        for each in [base, *runs]:
            contenders[each.method] = Contender(spec, each)
            at_end.callback(contenders[each.method].leave)
        _check_apart(list(contenders.values()))
        clocks = {method: Clock(each.step, each.ascended, by_processor(spec)) for method, each in contenders.items()}
        _take(spec.device, list(contenders.values()), list(clocks.values()), steps, tell)
    for method, share in shares.items():
        _check_seen(method, clocks[method], share)
    return clocks


def _check_apart(contenders: Sequence[Contender]) -> None:
    """Refuse contenders that have ended, or that train the same weights."""
    ended = next((each.ended for each in contenders if each.ended is not None), None)
    if ended is not None:
        raise CannotError(ended)
    if len({id(each.sharpen.model) for each in contenders}) < len(contenders):
        raise CannotError("the script makes its model outside of the function")


def _check_seen(method: str, clock: Clock, share: float) -> None:
    """Refuse times without those steps that make a method what it is."""
    if (share > 0 and not clock.seconds[True]) or (share < 1 and not clock.seconds[False]):
        turns = sum(map(len, clock.seconds.values()))
        raise CannotError(f"not every kind of step of {method} was seen in {turns} turns")


def _take(device: str, contenders: list[Contender], clocks: list[Clock], steps: int, tell: Tell) -> None:
    """Turns in blocks that start at places spread over the schedule; as many as the script's length allows."""
    start = time.perf_counter()
    try:
        for _ in range(WARM_UP):
            take_turn(device, clocks, None, keep=False)
        turn = (time.perf_counter() - start) / WARM_UP
        blocks = round(min(max(BUDGET / turn, LEAST), MOST, max(steps - WARM_UP, BLOCK)) / BLOCK)
        for block in range(blocks):
            for each in contenders:
                each.forward(block * steps // blocks)
            for _ in range(BLOCK):
                take_turn(device, clocks, None)
            tell((block + 1) / blocks)
    except CannotError:
        if min(sum(map(len, clock.seconds.values())) for clock in clocks) < BLOCK:
            raise


def of_runs(records: Sequence[Record]) -> dict[str, Any]:
    """What the final runs say of a step's cost: method -> seed -> seconds of a step by its kind; steps of the base."""
    plain = [each for each in records if each["variant"] == "plain"]
    seconds: dict[str, dict[int, Any]] = {}
    for each in plain:
        seconds.setdefault(each["method"], {})[each["seed"]] = each["step_seconds"]
    return {"seconds": seconds, "steps": min((r["steps"] for r in plain if r["method"] == BASE), default=1)}


def _from_runs(runs: list[Run], shares: Mapping[str, float], of_runs: Mapping[str, Any], why: str) -> dict[str, Any]:
    """The ratio of a step's processor time, seed by seed, each kind of step in its share."""
    seconds: Mapping[str, Any] = of_runs["seconds"]
    base = {seed: each["plain"] for seed, each in seconds.get(BASE, {}).items() if each["plain"]}
    methods = {}
    for run in runs:
        own = {seed: _mean(each, shares[run.method]) for seed, each in seconds[run.method].items()}
        ratios = [each / base[seed] for seed, each in own.items() if each is not None and seed in base]
        known = [each for each in own.values() if each is not None]
        methods[run.method] = {
            "label": run.label, "time_ratio": quartiles(ratios) if ratios else None, "memory_ratio": None,
            "passes": 1 + shares[run.method], "step_ms": 1e3 * median(known) if known else None,
        }  # fmt: skip
    return {"base": of_base(base.values()), "methods": methods, "turns": 0, "measured": "runs", "why": why}


def _mean(step: Mapping[str, float | None], share: float) -> float | None:
    """Seconds of a step where this share of the steps ascends; None where no step of a kind was timed."""
    parts = [(share, step["ascended"]), (1 - share, step["plain"])]
    if any(weight > 0 and value is None for weight, value in parts):
        return None
    return sum(weight * value for weight, value in parts if value is not None)
