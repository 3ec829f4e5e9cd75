"""What is tried before anything runs: the targets, and the model on two examples. What cannot be, is one sentence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steppe._command.lookup import brief
from steppe._words import an
from steppe.compare.data.examples import Task
from steppe.compare.data.losses import each_of
from steppe.compare.engine.measure import evaluating


def check_targets(task: Task) -> None:
    """Refuse labels that are none."""
    if task.loss != "cross_entropy":
        return
    y = task.train.y
    if y.is_floating_point() and not task.classes:
        return
    if not task.classes:
        raise ValueError(f"{task.name} has whole numbers as labels and no classes; say how many: Task(..., classes=2)")
    if y.dim() == 2 and y.shape[1] == 1:
        raise ValueError(f"the train labels of {task.name} are a column, of shape {tuple(y.shape)}; give y.squeeze(1)")
    for part in ("train", "val", "test"):
        labels: Tensor = getattr(task, part).y
        where = f"the {part} labels of {task.name}"
        _check_kind(labels, where, task.classes)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= task.classes:
            raise ValueError(
                f"{where} go from {low} to {high}; expected 0 to {task.classes - 1}, as it has {task.classes} classes"
            )
        if low == high and task.classes > 1 and len(labels) > 1:
            raise ValueError(
                f"{where} are all {low}, which cannot tell one model from another; expected examples of every class"
            )


def _check_kind(labels: Tensor, where: str, classes: int) -> None:
    if labels.dim() == 2 and labels.shape[1] == classes and bool(((labels == 1).sum(1) == 1).all()):
        raise ValueError(f"{where} are one-hot, of shape {tuple(labels.shape)}; give y.argmax(1)")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        kind = str(labels.dtype).removeprefix("torch.")
        raise ValueError(f"{where} are {kind}; expected whole numbers from 0 to {classes - 1}: give y.long()")


def check_model(name: str, model: nn.Module, task: Task) -> None:
    """Refuse a model that cannot read two of the task's examples, or does not answer them."""
    few = task.train.take(torch.arange(min(2, len(task.train)), device=task.train.y.device))
    try:
        with evaluating(model), torch.no_grad():
            output = model(few.x)
    except Exception as error:
        shape = f" of shape {tuple(few.x.shape[1:])}" if isinstance(few.x, Tensor) else ""
        raise ValueError(f"model {name!r} fails on two examples{shape}: {brief(error)}") from error
    if not isinstance(output, Tensor):
        raise ValueError(f"model {name!r} gave {an(type(output).__name__)}; expected one tensor")
    _check_output(name, output, task)
    try:
        each_of(task.loss, output, few.y)
    except Exception as error:
        raise ValueError(f"model {name!r}: the loss of its output cannot be taken: {brief(error)}") from error


def check_anew(name: str, one: nn.Module, other: nn.Module) -> None:
    """Refuse a function that gives the same weights again: every run would go on where another ended."""
    known = {id(weight) for weight in one.parameters() if weight.requires_grad}
    if any(id(weight) in known for weight in other.parameters()):
        raise ValueError(
            f"model {name!r} gave the same weights twice, and every run would go on where another ended; make the "
            "network inside of the function, or give copy.deepcopy(network)"
        )


def _check_output(name: str, output: Tensor, task: Task) -> None:
    """One number for each class; other tasks know by their loss."""
    if task.classes and task.loss == "cross_entropy" and task.train.y.dim() == 1:
        given = output.shape[1] if output.dim() == 2 else tuple(output.shape[1:])
        if given != task.classes:
            raise ValueError(
                f"model {name!r} gave {given} numbers for an example; expected {task.classes}, one for each class"
            )
