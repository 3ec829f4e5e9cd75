"""What a user sees while a study runs: bars on a terminal, one plain line per finished run elsewhere. On stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class PlainProgress:
    """One line per finished run; for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.finished = self.total = 0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begin(self, total: int, finished: int) -> None:
        """Say how many runs there are and how many are done from an earlier call."""
        self.total, self.finished = total, finished
        kept = f", {finished} of them done before" if finished else ""
        self.say(f"{total} runs{kept}")

    def expect(self, total: int) -> None:
        """There are as many runs now: what was learned may ask for more."""
        self.total = total

    def begun(self, key: str, text: str) -> None:
        """A run has started."""

    def moving(self, key: str, share: float) -> None:
        """A run has got as far as `share`."""

    def done(self, key: str, text: str, told: str) -> None:
        """A run has its record; `told` is what it came to."""
        self.finished += 1
        self.say(f"[{self.finished}/{self.total}] {text}: {told}")

    def failed(self, key: str, text: str, why: str) -> None:
        """A run has ended without a record."""
        self.finished += 1
        self.say(f"[{self.finished}/{self.total}] {text} failed: {why}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveProgress(PlainProgress):
    """An overall bar, and one bar per run under way."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._all = Progress(*columns, console=console)
        self._each = Progress(
            TextColumn("  {task.description}", style="dim"), BarColumn(20), TextColumn("{task.percentage:>3.0f} %")
        )
        self._overall = self._all.add_task("runs", total=None)
        self._bars: dict[str, TaskID] = {}
        self._live = Live(Group(self._all, self._each), console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, total: int, finished: int) -> None:
        """Set the overall bar."""
        super().begin(total, finished)
        self._all.update(self._overall, total=total, completed=finished)

    def expect(self, total: int) -> None:
        """Stretch the overall bar."""
        super().expect(total)
        self._all.update(self._overall, total=total)

    def begun(self, key: str, text: str) -> None:
        """Add the run's own bar."""
        self._bars[key] = self._each.add_task(text, total=1.0)

    def moving(self, key: str, share: float) -> None:
        """Move the run's bar."""
        self._each.update(self._bars[key], completed=share)

    def done(self, key: str, text: str, told: str) -> None:
        """Take the run's bar away, move the overall one."""
        self._end(key)

    def failed(self, key: str, text: str, why: str) -> None:
        """As `done`, and say why."""
        self._end(key)
        self.say(f"{text} failed: {why}")

    def _end(self, key: str) -> None:
        self.finished += 1
        if key in self._bars:  # a worker may die before its run begins
            self._each.remove_task(self._bars.pop(key))
        self._all.update(self._overall, completed=self.finished)


def on(console: Console) -> PlainProgress:
    """Bars where `console` is a terminal, lines where it is not."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)
