"""What is said of work whose length is not known, where there is no terminal."""

import io

import pytest
from rich.console import Console

from steppe._command import progress
from steppe._command.progress import Counted


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def said(shown: Counted) -> list[str]:
    return shown.console.file.getvalue().splitlines()


def test_a_part_is_told_as_it_begins_and_then_every_ten_seconds(now: list[float]) -> None:
    with Counted(Console(file=io.StringIO(), width=20)) as shown:
        work = shown.counting(lambda batch: 2 * batch)
        shown.begin("the curvature of a model")
        for _ in range(25):
            now[0] += 1
            assert work(3) == 6
        shown.begin("sharpness")
        work(3)
    assert said(shown) == [
        "the curvature of a model",
        "the curvature of a model: 10 passes in 10 s",
        "the curvature of a model: 20 passes in 20 s",
        "sharpness",
    ]


def test_an_hour_is_told_in_fewer_lines_than_one_each_ten_seconds(now: list[float]) -> None:
    with Counted(Console(file=io.StringIO())) as shown:
        work = shown.counting(lambda _: None, "of 3600 steps")
        shown.begin("training")
        for _ in range(3600):
            now[0] += 1
            work(None)
    assert 10 < len(said(shown)) < 60 and " of 3600 steps in " in said(shown)[-1]


def test_a_terminal_shows_one_line_that_goes(now: list[float]) -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with Counted(console) as shown:
        for part in ("curvature [of a model]", "sharpness"):
            shown.begin(part)
    assert "sharpness" in console.file.getvalue() and said(shown)[-1].endswith("\x1b[1A\x1b[2K"), "erased"
