"""What is seen and noted while the Trainer runs: progress on stderr, seconds per step, the curve of the loss."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from steppe.integrations._trainer import NoFurther


class Quiet:
    """Shows nothing; what the others share."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, total: int, done: int, what: str = "steps") -> None:
        """Training begins, or goes on after ``done`` of ``total`` steps (or ``what`` else is counted)."""

    def step(self, done: int) -> None:
        """So many steps are done."""

    def note(self, done: int, total: int, loss: float) -> None:
        """The mean loss since the latest note."""

    def say(self, text: str) -> None:
        """A line that stays."""


class Lines(Quiet):
    """About ten lines over a run, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console, self._said = console, 0.0

    def begin(self, total: int, done: int, what: str = "steps") -> None:
        """Say how many steps there are."""
        self._said = done / total
        self.say(f"{total} {what}" + (f", {done} of them done before" if done else ""))

    def note(self, done: int, total: int, loss: float) -> None:
        """Say the loss at every tenth of the way."""
        if done / total >= self._said + 0.1 or done == total:
            self._said = done / total
            self.say(f"[{done}/{total}] loss {loss:.4f}")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class Bar(Lines):
    """A bar with the latest loss, on a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"), console=console,
            transient=True,
        )  # fmt: skip
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, total: int, done: int, what: str = "steps") -> None:
        """Show the bar."""
        self._task = self._bar.add_task(what, total=total, completed=done, loss="")

    def step(self, done: int) -> None:
        """Move it."""
        if self._task is not None:
            self._bar.update(self._task, completed=done)

    def note(self, done: int, total: int, loss: float) -> None:
        """Show the loss beside it."""
        if self._task is not None:
            self._bar.update(self._task, loss=f"loss {loss:.4f}")


def on(console: Console) -> Quiet:
    """A bar where ``console`` is a terminal, lines where it is not."""
    return Bar(console) if console.is_terminal else Lines(console)


class Watch(TrainerCallback, ExportableState):
    """Notes seconds per step, passes and the Trainer's logs, and tells the progress.

    Attributes:
        seconds: of each optimizer step of this process. curve: what the Trainer logged, of earlier processes too.
        begun_at: the step this process began at.
        counted: gives passes and steps since then; the base's plain steps count themselves.
    """

    def __init__(self, shown: Quiet) -> None:
        self.shown, self.seconds, self.begun_at = shown, list[float](), 0
        self.curve: list[dict[str, Any]] = []
        self.counted: Callable[[], tuple[float, float]] = lambda: (len(self.seconds), len(self.seconds))
        self._before: Sequence[float] = (0.0, 0.0)
        self._start = 0.0

    def state(self) -> dict[str, Any]:
        """Passes and steps so far: the Trainer writes them into each checkpoint."""
        return {"args": {}, "attributes": {"passes": self._passes()}}

    def _passes(self) -> list[float]:
        return [earlier + now for earlier, now in zip(self._before, self.counted(), strict=True)]

    @property
    def passes_per_step(self) -> float | None:
        """Mean over all steps, those before a break too (unless an older version saved the checkpoint)."""
        passes, steps = self._passes()
        return passes / steps if steps else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell where training begins, and take up the passes of the part before it."""
        self.begun_at = state.global_step
        if state.global_step:
            noted = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
            self._before = noted.get("passes", self._before)
        self.shown.begin(state.max_steps, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._start)
        self.shown.step(state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Where no step was taken, what the checkpoint holds is not evaluated and written once more."""
        if state.global_step == self.begun_at > 0:
            control.should_evaluate = control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Tell the loss."""
        if logs and "loss" in logs:
            self.shown.note(state.global_step, state.max_steps, logs["loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take over the Trainer's history."""
        self.curve = list(state.log_history)

    @property
    def typical(self) -> float | None:
        """Median seconds of a step; the first ones, which warm up, are left out where there are enough."""
        usable = self.seconds[2:] if len(self.seconds) > 4 else self.seconds
        return statistics.median(usable) if usable else None


class Patience(EarlyStoppingCallback):
    """Stops the training after so many looks without a better one; a resumed run counts on."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the count of the part before a break."""
        super().on_train_begin(args, state, control)
        noted = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step else {}
        self.early_stopping_patience_counter = noted.get("attributes", {}).get("early_stopping_patience_counter", 0)

    @property
    def spent(self) -> bool:
        """Whether it has stopped the training."""
        return bool(self.early_stopping_patience_counter >= self.early_stopping_patience)


class Noting(NoFurther):
    """Stands before a Trainer among the bases: keeps the latest training loss, on its device, so that nothing waits.

    The Trainer's own logs will not do: by default they leave out losses that are not finite. Resumed where the training
    had ended, it takes no step more.
    """

    loss: Tensor | None = None
    callback_handler: Any

    def ended(self) -> bool:
        """Also where the patience was spent."""
        return super().ended() or any(
            each.spent for each in self.callback_handler.callbacks if isinstance(each, Patience)
        )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's."""
        host: Any = super()
        loss: Tensor = host.training_step(*args, **kwargs)
        self.loss = loss.detach()
        return loss


def diverged(trainer: Any) -> bool:
    """Whether the last training loss, or a weight that was trained, is not finite."""
    weights = (weight.detach() for weight in trainer.model.parameters() if weight.requires_grad)
    found = weights if trainer.loss is None else chain([trainer.loss], weights)
    return not all(bool(each.isfinite().all()) for each in found)


DIVERGED = (
    "warning: the training diverged: its loss or weights are not finite at the end, so the result means nothing; "
    "try a lower learning rate"
)
