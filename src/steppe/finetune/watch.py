"""What is seen and noted while the Trainer runs: progress on stderr, seconds per step, the curve of the loss."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
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

from steppe._command.progress import EVERY, line
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

    def measured(self, done: int, total: int) -> None:
        """So many batches are measured."""

    def say(self, text: str) -> None:
        """A line that stays."""


class Lines(Quiet):
    """About ten lines over a run, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console, self._said, self._told = console, 0.0, 0.0

    def begin(self, total: int, done: int, what: str = "steps") -> None:
        """Say how many steps there are."""
        self._said = done / total
        self.say(f"{total} {what}" + (f", {done} of them done before" if done else ""))

    def note(self, done: int, total: int, loss: float) -> None:
        """Say the loss at every tenth of the way."""
        if done / total >= self._said + 0.1 or done == total:
            self._said = done / total
            self.say(f"[{done}/{total}] loss {loss:.4f}")

    def measured(self, done: int, total: int) -> None:
        """Say it now and then where it takes long."""
        if done == 1:
            self._told = time.monotonic()
        elif time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            self.say(f"[{done}/{total}] batches measured")

    def say(self, text: str) -> None:
        """Print a line."""
        line(self.console, text)


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
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, completed=done, loss="")

    def step(self, done: int) -> None:
        """Move it."""
        if self._task is not None:
            self._bar.update(self._task, completed=done)

    def measured(self, done: int, total: int) -> None:
        """Show a bar of the measurement."""
        if done == 1:
            self.begin(total, 0, "batches measured")
        self.step(done)

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
        taken: gives the loss of the step that ends. losses: of all steps, of earlier processes too.
    """

    def __init__(self, shown: Quiet) -> None:
        self.shown, self.seconds, self.begun_at = shown, list[float](), 0
        self.curve: list[dict[str, Any]] = []
        self.counted: Callable[[], tuple[float, float]] = lambda: (len(self.seconds), len(self.seconds))
        self.taken: Callable[[], Tensor | float] = lambda: 0.0
        self.losses = Losses()
        self._before: Sequence[float] = (0.0, 0.0)
        self._start = 0.0
        self.over, self.measured = False, 0

    def state(self) -> dict[str, Any]:
        """Passes, steps and losses so far: the Trainer writes them into each checkpoint."""
        return {"args": {}, "attributes": {"passes": self._passes(), "losses": self.losses.state()}}

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
            self.losses = Losses(**noted.get("losses", {}))
        self.shown.begin(state.max_steps, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._start)
        self.losses.add(self.taken(), (state.global_step - 1) / state.max_steps)
        self.shown.step(state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Where no step was taken, what the checkpoint holds is not evaluated and written once more."""
        if state.global_step == self.begun_at > 0:
            control.should_evaluate = control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Tell the loss."""
        if logs and "loss" in logs:
            self.shown.note(state.global_step, state.max_steps, logs["loss"])

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """Tell how far the measurement is, once training is over."""
        if self.over:
            self.measured = self.measured % len(eval_dataloader) + 1
            self.shown.measured(self.measured, len(eval_dataloader))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take over the Trainer's history."""
        self.curve, self.over = list(state.log_history), True

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


class Losses:
    """The mean training loss of each tenth of the steps, summed on the device, so that nothing waits.

    The Trainer's own logs will not do: they may be few or none, or leave out losses that are not finite.
    """

    def __init__(self, sums: Sequence[Any] = (0.0,) * 10, counts: Sequence[int] = (0,) * 10) -> None:
        self.sums, self.counts = list(sums), list(counts)

    def add(self, loss: Tensor | float, share: float) -> None:
        """The loss of a step, so far on the way."""
        tenth = min(9, int(10 * share))
        self.sums[tenth] = self.sums[tenth] + loss
        self.counts[tenth] += 1

    def state(self) -> dict[str, list[Any]]:
        """For a checkpoint."""
        return {"sums": [float(each) for each in self.sums], "counts": self.counts}

    @property
    def ends(self) -> tuple[float, float] | None:
        """Mean of the first tenth and of the last one that had steps."""
        means = [float(total) / count for total, count in zip(self.sums, self.counts, strict=True) if count]
        return (means[0], means[-1]) if means else None


class Noting(NoFurther):
    """Stands before a Trainer among the bases: sums the training losses of a step, on their device.

    Resumed where the training had ended, or where the patience was spent, it takes no step more.
    """

    loss: Tensor | float = 0.0
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
        self.loss = self.loss + loss.detach()
        return loss

    def taken(self) -> Tensor | float:
        """The loss of the step that ends."""
        found, self.loss = self.loss, 0.0
        return found


_EXPLODED = 2.0
"""A loss that ends at so many times where it began, or where guessing is, has run away."""


def why_diverged(model: Any, losses: Losses, guessing: float) -> str | None:
    """In what a training has diverged, or None; `guessing` is the loss of a model that knows nothing."""
    weights = (weight.detach() for weight in model.parameters() if weight.requires_grad)
    first, last = losses.ends or (0.0, 0.0)
    if not math.isfinite(last) or not all(bool(each.isfinite().all()) for each in weights):
        return "its loss or weights are not finite at the end"
    if last > _EXPLODED * max(first, guessing):
        return f"its loss rose from {first:.4g} in the first tenth to {last:.4g} in the last"
    return None


def warning(why: str) -> str:
    """What the terminal says of a training that diverged."""
    return f"warning: the training diverged: {why}, so the result means nothing; try a lower learning rate or radius"
