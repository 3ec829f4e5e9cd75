"""Whether outputs tell more of the labels than guessing does, however rare some classes are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steppe.compare.data.examples import Split
from steppe.compare.data.metrics import Metric

ANSWERED = ("accuracy", "balanced_accuracy", "f1", "matthews")
"""Metrics that hear of the answers alone; the others hear of probabilities."""


class _Beyond:
    """By how many standard deviations outputs fit their labels better than the same labels shuffled.

    The fit is the sum of what each label got: of answers, how many are right. Who answers the same to everything fits
    every order of the labels as well, and has 0. Mean and deviation over all orders are exact (Hoeffding 1951).
    """

    def __init__(self, labels: Tensor, classes: int, answers: bool) -> None:
        self._answers, self._many = answers, len(labels)
        self._counts = torch.bincount(labels.cpu(), minlength=classes).double()
        self._fit = self._squares = 0.0
        self._by_class, self._by_row = torch.zeros(classes, dtype=torch.float64), list[Tensor]()

    def update(self, output: Tensor, target: Tensor) -> None:
        scores = output.detach().double().cpu()
        given = torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1]).double()
        given = given if self._answers else scores.softmax(1)
        self._fit += float(given.gather(1, target.cpu()[:, None]).sum())
        self._squares += float((given.square() @ self._counts).sum())
        self._by_class += given.sum(0)
        self._by_row.append(given @ self._counts / self._many)

    def compute(self) -> float:
        rows = torch.cat(self._by_row)
        mean, columns = float(rows.sum()), (self._counts * (self._by_class - rows.sum()).square()).sum() / self._many
        total = self._squares - self._many * float(rows.square().sum()) - float(columns)
        deviation = math.sqrt(max(total, 0.0) / max(self._many - 1, 1))
        return (self._fit - mean) / deviation if deviation > 1e-9 * self._many else 0.0


def beyond(labels: Tensor, judge: str) -> Metric:
    """A metric of outputs for these labels; of answers where `judge` is, else of probabilities."""
    return Metric("beyond_chance", meter=lambda classes: _Beyond(labels, classes, judge in ANSWERED))


def most(labels: Tensor) -> float:
    """What the right answer to everything has."""
    classes = int(labels.max()) + 1
    meter = _Beyond(labels, classes, answers=True)
    for part in labels.split(Split.chunk):  # of many classes, all at once would be gigabytes
        meter.update(torch.nn.functional.one_hot(part, classes), part)
    return meter.compute()
