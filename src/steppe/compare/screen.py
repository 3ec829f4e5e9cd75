"""What a user sees on a terminal while a comparison runs: the methods so far, and the runs under way. On stderr."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from steppe._command.progress import PlainProgress, Work
from steppe._command.tables import table
from steppe.compare.analysis.summary import summarise
from steppe.compare.analysis.wording import ABSENT, Words, chosen, epochs, with_lengths
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.store import Store


class Screen(PlainProgress):
    """A table of the methods, which fills while the runs come in, over a bar for each run under way."""

    def __init__(self, console: Console, plan: Plan) -> None:
        super().__init__(console)
        self._plan, self._store = plan, Store(Path(plan.spec.out), plan.spec_hash)
        self._records: dict[str, dict[str, Any]] = {}
        self._table: RenderableType = ""
        bar = TextColumn("  {task.description}", style="dim"), BarColumn(20), TextColumn("{task.percentage:>3.0f} %")
        self._each, self._bars = Progress(*bar), dict[str, TaskID]()
        self._live = Live(get_renderable=self._now, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _now(self) -> Group:
        said = f"{self.finished} of {self.total} runs{self.left()}" if self.total else "getting ready"
        return Group(self._table, Text(said), self._each)

    def begin(self, total: int, finished: int, work: Work | None = None) -> None:
        """Show what is done from an earlier call."""
        super().begin(total, finished, work)
        self._records = self._store.known(self._plan.needed)
        self._look()

    def begun(self, key: str, text: str) -> None:
        """Add the run's own bar."""
        self._bars[key] = self._each.add_task(text, total=1.0)

    def moving(self, key: str, share: float) -> None:
        """Move the run's bar."""
        self._each.update(self._bars[key], completed=share)

    def done(self, key: str, text: str, told: str) -> None:
        """Take the run's bar away, and its figures into the table."""
        self._end(key)
        self._records |= self._store.load([key])
        self._look()

    def failed(self, key: str, text: str, why: str) -> None:
        """As `done`, and say why."""
        self._end(key)
        self.say(f"{text} failed: {why}")

    def _end(self, key: str) -> None:
        self.finished += 1
        if key in self._bars:  # a worker may die before its run begins
            self._each.remove_task(self._bars.pop(key))

    def _look(self) -> None:
        labels = {choice.text: choice.label for choice in self._plan.choices}
        spec = self._plan.spec
        shown = {"methods": ["base", *labels], "labels": labels, "seeds": spec.seeds, "epochs_grid": spec.epochs_grid}
        self._table = so_far(summarise(self._plan.records(self._records), None, shown))


def so_far(summary: dict[str, Any]) -> Table:
    """Each method with its figure and gain over the seeds that are done."""
    words, wanted = Words(summary), len(summary["spec"]["seeds"])
    chose = [("ρ", chosen), *([("epochs", epochs)] if with_lengths(summary) else [])]
    heads = "method", *(head for head, _ in chose), words.judge.head, "seeds", f"gain so far, {words.unit}"
    made = table(heads, ruled=True, no_wrap=True)
    for row in summary["rows"]:
        figure = words.figure(row[summary["judged"]]) if row["seeds"] else tried(row, words)
        told = *(said(row) for _, said in chose), figure, f"{row['seeds']}/{wanted}", words.gain(row["gain"])
        made.add_row(Text(row["label"]), *told, style="dim" if row["method"] == "base" else "")
    return made


def tried(row: dict[str, Any], words: Words) -> str:
    """What the best setting so far has on validation data, while none is chosen yet: `63.9 (val.)`."""
    found = [point[f"val_{words.judge.name}"] for point in row["tuning"]]
    return f"{words.value(max(found, key=words.judge.rank))} (val.)" if found else ABSENT


def on(console: Console, plan: Plan) -> PlainProgress:
    """The table where `console` is a terminal, lines where it is not."""
    return Screen(console, plan) if console.is_terminal else PlainProgress(console)
