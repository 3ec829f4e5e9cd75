"""An interrupt between any two lines: weights, statistics and what is put aside come back as they were."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.loops.faults import BATCHES, Built, build, loss_of, trained
from tests.problems import everything, same
from torch import nn
from torch.nn.modules import module

import steppe

HOME = str(Path(steppe.__file__).parent)
Place = tuple[str, int, int]


def traced(name: str, built: Built, at: Place | None = None, time: int = 0) -> list[Place]:
    """The lines of steppe's that one backward executes: file, first line of the function, line.

    With ``at``, ``KeyboardInterrupt`` where that line is executed for the ``time``-th time; only its function is traced
    then, as every line that is costs more than what it does.
    """
    places: list[Place] = []

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            place = (frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_lineno)
            if at is None or place == at:
                places.append(place)
            if len(places) == time:
                raise KeyboardInterrupt
        return line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        wanted = code.co_filename.startswith(HOME) if at is None else (code.co_filename, code.co_firstlineno) == at[:2]
        return line if wanted else None

    earlier = sys.gettrace()
    sys.settrace(trace)
    try:
        built[2].backward(loss_of(name, built[0]), BATCHES[0])
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(earlier)
    return places


def left_wrong(name: str, at: Place, time: int) -> list[str]:
    built, hooks = build(name), [*module._global_forward_pre_hooks]
    before = trained(built[0])
    assert len(traced(name, built, at, time)) == time, "it is interrupted there"
    wrong = [] if same(before, trained(built[0])) else ["weights"]
    nn.Identity()(None)  # the next module that runs, whosoever it is
    wrong += [] if hooks == [*module._global_forward_pre_hooks] else ["hooks"]
    try:
        return [*wrong, "statistics"] if everything(built[0])["norm.num_batches_tracked"] > 1 else wrong
    except RuntimeError:
        return [*wrong, "doors"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reuse", "ahead of the pass", "few samples"])
def test_an_interrupt_between_any_two_lines(name: str) -> None:
    """Ctrl-C at every line of steppe's, the clean-up itself included, when it is executed for the last time."""
    traced(name, build(name))  # finds once what holds for the whole process
    places = traced(name, build(name))
    met = set() if name == "reuse" else set(traced("reuse", build("reuse")))  # there they have had their interrupt
    last = {place: times for place, times in Counter(places).items() if place not in met}
    wrong = {place: faults for place, times in last.items() if (faults := left_wrong(name, place, times))}
    assert len(places) > 100 and last and not wrong
