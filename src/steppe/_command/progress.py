"""What a user sees while a command works where there is no terminal: a plain line now and then. On stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

EVERY = 10.0
"""Seconds between two lines on the same work."""

Work = tuple[float, float]
"""How much all runs are, and how much those that have ended, where they differ in length; in any unit."""


class PlainProgress:
    """One line per finished run; for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.finished = self.total = 0
        self._work: Work | None = None
        self._before = 0.0
        self._began, self._expected = time.monotonic(), 0.0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def foretell(self, seconds: float) -> None:
        """Be told beforehand how long all runs would take."""
        self._expected = seconds

    def begin(self, total: int, finished: int, work: Work | None = None) -> None:
        """Say how many runs there are, how many are done from an earlier call, and how long the others may take."""
        self.finished, self._began = finished, time.monotonic()
        self.expect(total, work)
        self._before = self._done()[1]
        kept = f", {finished} of them done before" if finished else ""
        self.say(f"{total} runs{kept}{self.left()}")

    def left(self) -> str:
        """`, about 4 min left`: by the runs of this call, or before there are any by what was expected of them."""
        whole, ended = self._done()
        here = ended - self._before
        each = (time.monotonic() - self._began) / here if here else self._expected / max(whole, 1)
        return f", about {duration(each * (whole - ended))} left" if self.total > self.finished and each else ""

    def _done(self) -> Work:
        return self._work or (self.total, self.finished)

    def expect(self, total: int, work: Work | None = None) -> None:
        """There are as many runs now: what was learned may ask for more; and so much work, if it is known."""
        self.total, self._work = total, work

    def skip(self, work: float) -> None:
        """So much of what has ended took none of the time of this call."""
        self._before += work

    def begun(self, key: str, text: str) -> None:
        """A run has started."""

    def moving(self, key: str, share: float) -> None:
        """A run has got as far as `share`."""

    def done(self, key: str, text: str, told: str) -> None:
        """A run has its record; `told` is what it came to."""
        self.finished += 1
        self.say(f"[{self.finished}/{self.total}] {text}: {told}{self.left()}")

    def failed(self, key: str, text: str, why: str) -> None:
        """A run has ended without a record."""
        self.finished += 1
        self.say(f"[{self.finished}/{self.total}] {text} failed: {why}")

    def say(self, text: str) -> None:
        """A line that stays."""
        line(self.console, text)


class Counted:
    """What a look at a model is about, and now and then how far it is: a line that changes on a terminal.

    The lines on one part come every ten seconds, later at every tenth of the time it has taken.
    """

    def __init__(self, console: Console) -> None:
        self.console, self._status = console, console.status("getting ready") if console.is_terminal else None
        self._what, self._calls, self._began, self._said = "", 0, 0.0, 0.0

    def __enter__(self) -> Counted:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def begin(self, what: str) -> None:
        """Say what is done from now on."""
        self._what, self._calls, self._began = what, 0, time.monotonic()
        self._say(what)

    def counting(self, work: Callable[[Any], Any], of: str = "passes") -> Callable[[Any], Any]:
        """`work`, whose calls are counted as so many `of`."""

        def counted(batch: Any) -> Any:
            self._count(of)
            return work(batch)

        return counted

    def _count(self, of: str) -> None:
        self._calls += 1
        now = time.monotonic()
        if now - self._said >= (0.5 if self._status else max(EVERY, 0.1 * (now - self._began))):
            self._say(f"{self._what}: {self._calls} {of} in {duration(now - self._began)}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        if self._status is None:
            line(self.console, text)
        else:
            self._status.update(Text(text))


def line(console: Console, text: str) -> None:
    """A line that stays, as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """`40 s`, `4 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
