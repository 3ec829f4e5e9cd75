"""Where a training process is, seen from outside, and the trap that ends it there with SIGKILL."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import RawArray
from types import FrameType
from typing import Any

from steppe import SharpnessAware
from steppe._climb import Climb
from steppe._present import Now

STEPS = 13  # per run; the checkpoints are those of steps 3, 6, 9, 12
EVERY = 3
REGIONS = ("ascent", "checkpoint", "update")
SKIPPED, ASCENDED = 1, 2


class Board:
    """Shared with the process that watches, so that it outlives the one that writes: one per rank and run."""

    def __init__(self) -> None:
        self.now = RawArray("i", [-1, 0, -1])  # step begun, region (1 + its place in REGIONS), checkpoint loaded
        self.decisions, self.losses = RawArray("i", STEPS), RawArray("d", STEPS)
        self.began = RawArray("d", STEPS)  # seconds
        self.calls = {region: RawArray("i", STEPS + 1) for region in REGIONS}
        self.before_file = RawArray("i", STEPS + 1)  # calls of a checkpoint's saving before there is a file

    @property
    def step(self) -> int:
        return self.now[0]

    @property
    def region(self) -> str:
        return ("", *REGIONS)[self.now[1]]

    @property
    def loaded(self) -> int:
        """Step of the checkpoint that the run began from; -1: none."""
        return self.now[2]

    @property
    def pace(self) -> float:
        """Seconds a step."""
        return (self.began[-1] - self.began[0]) / (STEPS - 1)

    def history(self) -> dict[int, tuple[int, float]]:
        """Decision and loss of every step that is known."""
        return {t: (d, self.losses[t]) for t, d in enumerate(self.decisions) if d}


@dataclass(frozen=True)
class Kill:
    """A moment: the ``calls``-th call or return of a Python or C function in this region of this step."""

    region: str
    step: int
    calls: int


class Watch:
    """Notes on the board where this process is; with ``kill``, ends it there; with ``count``, counts its calls."""

    def __init__(self, board: Board, kill: Kill | None = None, count: bool = False) -> None:
        self.board, self._kill, self._count = board, kill, count
        self._calls, self.stepping = 0, False
        self.clock: Callable[[SharpnessAware | Now], int] = lambda what: what.step

    def loaded(self, step: int) -> None:
        self.board.now[2] = step

    def writing(self, step: int) -> None:
        """From here on there is a file; most of what comes before is not its writing."""
        self.board.before_file[step] = self._calls

    @contextmanager
    def region(self, name: str, step: int) -> Iterator[None]:
        self.enter(name, step)
        try:
            yield
        finally:
            self.leave(name, step)

    def enter(self, name: str, step: int) -> None:
        self.board.now[1] = 1 + REGIONS.index(name)
        self._calls = 0
        if self._count or self._meant(name, step):
            sys.setprofile(self._tick)

    def leave(self, name: str, step: int) -> None:
        sys.setprofile(None)
        if self._meant(name, step):
            os.kill(os.getpid(), signal.SIGKILL)  # fewer calls than the undisturbed run had: at the end of the region
        self.board.calls[name][step] = self._calls
        self.board.now[1] = 0

    def _meant(self, name: str, step: int) -> bool:
        return self._kill is not None and (self._kill.region, self._kill.step) == (name, step)

    def _tick(self, frame: FrameType, event: str, arg: Any) -> None:
        self._calls += 1
        if self._kill is not None and self._calls >= self._kill.calls:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Follow every SharpnessAware of this process, without a change to it or to the loop."""
        _follow_backward(self)
        _follow_perturbation(self)
        _follow_update(self)


def _follow_backward(watch: Watch) -> None:
    plain = SharpnessAware.backward

    def backward(sharp: SharpnessAware, *args: Any, **kwargs: Any) -> Any:
        t = watch.clock(sharp)
        watch.board.now[0], watch.board.began[t] = t, time.monotonic()
        loss = plain(sharp, *args, **kwargs)
        watch.board.losses[t] = float(loss)
        watch.board.decisions[t] = ASCENDED if sharp.last.ascended else SKIPPED
        if watch.stepping:
            watch.enter("update", t)
        return loss

    SharpnessAware.backward = backward


def _follow_perturbation(watch: Watch) -> None:
    """The region in which the weights are, or begin or cease to be, perturbed."""
    rises, closes = Climb.up, Climb.close

    def opened(climb: Climb, *args: Any) -> Any:
        there = rises(climb, *args)
        watch.enter("ascent", watch.clock(climb._present.now))
        return there

    def closed(climb: Climb, *args: Any, **kwargs: Any) -> None:
        perturbed = climb.perturbation is not None
        closes(climb, *args, **kwargs)
        if perturbed:
            watch.leave("ascent", watch.clock(climb._present.now))

    Climb.up, Climb.close = opened, closed


def _follow_update(watch: Watch) -> None:
    """The region of the optimizer's step: base state, weights, memory and schedule change one after the other."""
    before, after = SharpnessAware._before_step, SharpnessAware._after_step

    def begun(sharp: SharpnessAware, *args: Any) -> None:
        # Lightning hands the optimizer a closure: there the passes come after this, and the update after them.
        watch.stepping = not watch.board.decisions[watch.clock(sharp)]
        if not watch.stepping:
            watch.enter("update", watch.clock(sharp))
        before(sharp, *args)

    def done(sharp: SharpnessAware, *args: Any) -> None:
        t = watch.clock(sharp)
        after(sharp, *args)
        watch.stepping = False
        watch.leave("update", t)

    SharpnessAware._before_step, SharpnessAware._after_step = begun, done
