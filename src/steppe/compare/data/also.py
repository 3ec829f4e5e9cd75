"""What else may be measured on the final weights of a run, by name: what it needs, and how a reader calls it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from steppe.compare.data.examples import Task
from steppe.compare.data.metrics import METRICS
from steppe.compare.judge import Judge

ALSO = ("calibration", "quantized", "noise")
"""What `--also` takes."""

BITS, NOISES = (8, 4, 3), (0.1, 0.3)
"""Bits that weights are rounded to; deviations of the noise, relative to that of the training inputs."""


@dataclass(frozen=True)
class Column:
    """One figure: its key in records, its head, and its own judge where it is not the study's metric."""

    name: str
    head: str
    judge: Judge | None = None


COLUMNS = {
    "calibration": (Column("ece", "calibration error", METRICS["ece"].judge),),
    "quantized": tuple(Column(f"bits_{bits}", f"{bits} bits") for bits in BITS),
    "noise": tuple(Column(f"noise_{size:g}", f"noise {size:g}") for size in NOISES),
}
"""What was asked for -> its figures, in order."""

SAID = {
    "calibration": "calibration error: expected, 15 bins of equal width",
    "quantized": "bits: every weight of two or more dimensions rounded to so many, symmetric, a scale for each output "
    "channel (first dimension), as it is after training; biases and normalisations stay",
    "noise": "noise: normal noise on the test inputs, so many times the deviation of all training inputs",
}
"""What the figures are, for a reader."""


def check(task: Task, wanted: Sequence[str]) -> None:
    """Refuse what makes no sense for a task, before anything is trained."""
    if "calibration" in wanted and not (task.classes and not task.test.y.is_floating_point()):
        raise ValueError(
            f"also = 'calibration' is of the probabilities of classes, and the targets of {task.name} are numbers; "
            "leave it out"
        )
    if "noise" in wanted and not any(tensor.is_floating_point() for tensor in numbers(task.test.x)):
        raise ValueError(
            f"also = 'noise' is on inputs that are numbers, and those of {task.name} are tokens; leave it out"
        )


def numbers(x: object) -> list[Tensor]:
    """The tensors of an input that hold numbers, and not tokens or masks."""
    return [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def deviation(x: object) -> float:
    """The standard deviation of all numbers of all inputs, around their mean."""
    every = torch.cat([tensor.detach().double().flatten() for tensor in numbers(x)])
    return float(every.std(correction=0))
