"""What is noted of a run at every look, and its metrics at the end, stopped early or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steppe.compare.data.examples import Split, Task
from steppe.compare.engine import measure
from steppe.compare.judge import Judge
from steppe.protocol import needs_of


@dataclass
class Curve:
    """What is noted at every look, and the weights with the best validation figure so far (ties: the earliest)."""

    task: Task
    seen: Split  # of the test set
    epoch: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    ascents: dict[str, list[float | None]] = field(default_factory=dict)
    best: int = 0  # the look
    weights: dict[str, Tensor] = field(default_factory=dict)
    _since: dict[str, list[Any]] = field(default_factory=dict)  # the latest look

    def step(self, sharp: Any) -> None:
        """Take down what the ascent of the latest step found, where there was one; nothing waits for a device."""
        last = getattr(sharp, "last", None)  # a user's own method may not tell
        if not getattr(last, "ascended", False):
            return
        gap = () if needs_of(sharp).look else ("surrogate_gap",)  # else of two different batches
        for name in (*gap, "perturbation_norm"):
            if (value := getattr(last, name, None)) is not None:
                self._since.setdefault(name, []).append(value)

    @property
    def judge(self) -> Judge:
        """What is judged by."""
        return self.task.measured[0].judge

    def note(self, model: nn.Module, epoch: float, train_loss: float) -> None:
        """Note the judging metric on validation and test, and keep the weights if they are the best so far."""
        val = self._judged(model, self.task.val)
        if not self.val or self.judge.better(val, self.val[self.best]):
            self.best = len(self.val)
            self.weights = {name: value.detach().clone() for name, value in trained(model).items()}
        for name in {*self.ascents, *self._since}:
            found = self._since.get(name, [])
            before = self.ascents.setdefault(name, [None] * len(self.epoch))
            before.append(sum(float(each) for each in found) / len(found) if found else None)
        self._since = {}
        self.epoch.append(epoch)
        self.train_loss.append(train_loss)
        self.val.append(val)
        self.test.append(self._judged(model, self.seen))

    def _judged(self, model: nn.Module, split: Split) -> float:
        (value,) = measure.metrics(model, split, self.task.measured[:1], self.task.outputs).values()
        return value

    def early(self, model: nn.Module, at_end: dict[str, float]) -> dict[str, Any]:
        """Early stopping: the epoch with the best validation figure, and the metrics there on the whole test set.

        The model comes as training left it, with the metrics on the test set of that.
        """
        found = {"epoch": self.epoch[self.best], f"val_{self.judge.name}": self.val[self.best]}
        if self.best == len(self.epoch) - 1:
            return found | at_end
        model.load_state_dict(self.weights, strict=False)
        return found | figures(model, self.task, "test")

    def as_dict(self) -> dict[str, list[Any]]:
        """For a record."""
        found = {f"val_{self.judge.name}": self.val, f"test_{self.judge.name}": self.test}
        return {"epoch": self.epoch, "train_loss": self.train_loss} | found | dict(sorted(self.ascents.items()))


def figures(model: nn.Module, task: Task, part: str) -> dict[str, float]:
    """Every metric of the task on one of its parts, as a record names them."""
    found = measure.metrics(model, getattr(task, part), task.measured, task.outputs)
    return {f"{part}_{name}": value for name, value in found.items()}


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What training may change: all but the frozen weights."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def spread(split: Split, count: int) -> Split:
    """At most `count` examples, evenly spread: a test folder may be sorted by class."""
    if len(split) <= count:
        return split
    return split.take(torch.linspace(0, len(split) - 1, count, device=split.y.device).long())
