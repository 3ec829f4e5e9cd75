"""Metrics by name, each with its direction; what is not a plain count comes from torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from steppe._command.lookup import nearest
from steppe.compare.data.losses import Loss, each_of, fitted
from steppe.compare.judge import Judge


class Meter(Protocol):
    """Takes outputs and targets piece by piece."""

    def update(self, output: Tensor, target: Tensor) -> Any:
        """Add a piece."""

    def compute(self) -> Any:
        """The metric over all pieces."""


@dataclass(frozen=True)
class Metric:
    """A figure of a trained model on a part of the data.

    A metric of your own: ``Metric("pinball", of=my_function, higher=False)``, with ``my_function(output, target)`` of
    all outputs and targets of the part.

    Args:
        name: what records call it.
        of: the metric as a function of all outputs and targets.
        higher: whether larger is better.
        title: what a reader calls it; the name by default.
        percent: whether it is a share of one, told in per cent.
        meter: instead of ``of``: makes a :class:`Meter` for a number of classes or outputs.
    """

    name: str
    of: Callable[[Tensor, Tensor], Any] | None = None
    higher: bool = True
    title: str = ""
    percent: bool = False
    meter: Callable[[int], Meter] | None = None

    def __post_init__(self) -> None:
        """Check that there is something to compute."""
        if (self.of is None) == (self.meter is None):
            raise ValueError(f"metric {self.name!r} needs a function: Metric({self.name!r}, of=function)")
        if not self.name.isidentifier():
            raise ValueError(f"metric {self.name!r} names columns of records; expected letters, digits and _")

    @property
    def judge(self) -> Judge:
        """What the analysis knows of it."""
        return Judge(self.name, self.title or self.name, self.higher, self.percent)

    def start(self, outputs: int) -> Meter:
        """A meter at its start."""
        return self.meter(outputs) if self.meter is not None else _Whole(self.of)  # type: ignore[arg-type]


class _Whole:
    """All outputs and targets, for a function that wants them at once."""

    def __init__(self, of: Callable[[Tensor, Tensor], Any]) -> None:
        self._of = of
        self._pieces: list[tuple[Tensor, Tensor]] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        self._pieces.append((output, target))

    def compute(self) -> float:
        outputs, targets = (torch.cat(list(parts)) for parts in zip(*self._pieces, strict=True))
        return float(self._of(outputs, targets))


class _Mean:
    """The mean over all numbers that a function gives for each piece, in double precision."""

    def __init__(self, of: Callable[[Tensor, Tensor], Tensor], then: Callable[[float], float] = lambda mean: mean):
        self._of, self._then = of, then
        self._sum, self._count = 0.0, 0

    def update(self, output: Tensor, target: Tensor) -> None:
        found = self._of(output, target)
        self._sum, self._count = self._sum + float(found.double().sum()), self._count + found.numel()

    def compute(self) -> float:
        return self._then(self._sum / self._count)


def _rows(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """One row of scores for each label, also where the examples are sequences of labels."""
    return (output.reshape(-1, output.shape[-1]), target.flatten()) if target.dim() > 1 else (output, target)


def _nll(output: Tensor, target: Tensor) -> Tensor:
    return each_of("cross_entropy", *_rows(output, target))


def _right(output: Tensor, target: Tensor) -> Tensor:
    scores, labels = _rows(output, target)
    return scores.argmax(1) == labels


class _Recall:
    """The mean over the classes that occur of the share of their examples that are answered rightly."""

    def __init__(self, classes: int) -> None:
        self._right, self._all = torch.zeros(2, classes, dtype=torch.int64)

    def update(self, output: Tensor, target: Tensor) -> None:
        labels = _rows(output, target)[1].cpu()
        self._right += torch.bincount(labels[_right(output, target).cpu()], minlength=len(self._right))
        self._all += torch.bincount(labels, minlength=len(self._all))

    def compute(self) -> float:
        there = self._all > 0
        return float((self._right[there] / self._all[there].double()).mean())


class _Ranking:
    """The mean over the classes that occur of how well each is told from the others by its probability."""

    def __init__(self, name: str) -> None:
        import torchmetrics

        self._of = getattr(torchmetrics.functional.classification, name)
        self._pieces: list[tuple[Tensor, Tensor]] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        self._pieces.append(_probabilities(output, target))

    def compute(self) -> float:
        chances, labels = (torch.cat(parts) for parts in zip(*self._pieces, strict=True))
        each = [self._of(chances[:, label], (labels == label).long()) for label in labels.unique().tolist()]
        return float(torch.stack(each).double().mean())


class _Torchmetric:
    """A metric of torchmetrics, handed what becomes of outputs and targets."""

    def __init__(self, name: str, of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], **settings: Any) -> None:
        import torchmetrics

        of_classes = name.startswith("Multiclass")
        made = getattr(torchmetrics.classification if of_classes else torchmetrics, name)(**settings)
        self._metric = made.set_dtype(torch.float64)  # its sums, which would round what it is handed
        self._of = of

    def update(self, output: Tensor, target: Tensor) -> None:
        self._metric.to(output.device).update(*self._of(output, target))

    def compute(self) -> float:
        return float(self._metric.compute())


def _flat(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers in the target's order."""
    return fitted(output, target).double().flatten(), target.double().flatten()


class _Unitless:
    """The same about 1 large, for metrics that are alike in every unit: torchmetrics takes a small sum for none."""

    _zero: Tensor
    _one: Tensor | None = None

    def __call__(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        guess, known = _flat(output, target)
        if self._one is None:  # by the first piece
            self._zero = known.mean()
            sizes = known.std(correction=0), known.abs().max(), torch.ones_like(self._zero)
            self._one = next(size for size in sizes if size > 0)
        return (guess - self._zero) / self._one, (known - self._zero) / self._one


def _probabilities(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    scores, labels = _rows(output, target)
    return scores.double().softmax(1), labels


def _classes(name: str, **settings: Any) -> Callable[[int], Meter]:
    return lambda outputs: _Torchmetric(name, _probabilities, num_classes=outputs, **settings)


def _number(name: str, unitless: bool = False) -> Callable[[int], Meter]:
    return lambda outputs: _Torchmetric(name, _Unitless() if unitless else _flat)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", percent=True, meter=lambda outputs: _Mean(_right)),
        Metric("nll", higher=False, title="negative log-likelihood", meter=lambda outputs: _Mean(_nll)),
        Metric("ece", higher=False, title="calibration error", percent=True,
               meter=_classes("MulticlassCalibrationError", n_bins=15)),
        Metric("balanced_accuracy", title="balanced accuracy", percent=True, meter=_Recall),
        Metric("auroc", title="AUROC", percent=True, meter=lambda outputs: _Ranking("binary_auroc")),
        Metric("average_precision", title="average precision", percent=True,
               meter=lambda outputs: _Ranking("binary_average_precision")),
        Metric("f1", title="macro F1", percent=True, meter=_classes("MulticlassF1Score", average="macro")),
        Metric("matthews", title="Matthews correlation", percent=True, meter=_classes("MulticlassMatthewsCorrCoef")),
        Metric("mse", higher=False, title="MSE", meter=_number("MeanSquaredError")),
        Metric("mae", higher=False, title="MAE", meter=_number("MeanAbsoluteError")),
        Metric("r2", title="R²", percent=True, meter=_number("R2Score", unitless=True)),
        Metric("pearson", title="Pearson correlation", percent=True, meter=_number("PearsonCorrCoef", unitless=True)),
        Metric("spearman", title="Spearman correlation", percent=True, meter=_number("SpearmanCorrCoef")),
        Metric("bits_per_byte", higher=False, title="bits per byte",
               meter=lambda outputs: _Mean(_nll, lambda mean: mean / math.log(2))),
        Metric("perplexity", higher=False, title="perplexity", meter=lambda outputs: _Mean(_nll, math.exp)),
    )
}  # fmt: skip
"""Name -> metric. Those of ranking are the mean over the classes, each beside the others. Correlations and R² are told
in per cent, as in the literature; bits per byte are of tokens that are bytes."""

USUAL = {"cross_entropy": ("accuracy", "nll"), "mse": ("mse", "mae", "r2"), "mae": ("mae", "mse", "r2")}
"""Loss -> the metrics of a task that names none; the first one judges."""


class _InUnit:
    """A metric of scaled numbers, in the unit that they had before."""

    def __init__(self, meter: Meter, factor: float) -> None:
        self.update, self._meter, self._factor = meter.update, meter, factor

    def compute(self) -> float:
        return self._factor * float(self._meter.compute())


def in_unit(name: str, factor: float) -> Metric:
    """A built-in metric times a factor: the target's unit where the target was divided by it."""
    metric = named(name)
    return replace(metric, meter=lambda outputs: _InUnit(metric.start(outputs), factor))


def chosen(metrics: Sequence[str | Metric], loss: Loss) -> tuple[Metric, ...]:
    """The metrics of a task, the one that judges first."""
    wanted = tuple(metrics) or USUAL.get(loss if isinstance(loss, str) else "", ())
    if not wanted:
        raise ValueError("a task with a loss of its own names its metrics: Task(..., loss=..., metrics=('mse',))")
    found = tuple(metric if isinstance(metric, Metric) else named(metric) for metric in wanted)
    names = [metric.name for metric in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"metric {twice!r} is named twice; name each once")
    return found


def named(name: str) -> Metric:
    """The built-in metric of that name."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; {nearest(str(name), METRICS)}, or give a steppe.compare.Metric")
    return METRICS[name]


def read_metric(text: str) -> Judge:
    """The judge that `accuracy`, `loss:lower` or `iou:higher:percent` names."""
    name, *words = text.split(":")
    if not name.isidentifier():
        raise ValueError(f"metric {text!r}: expected a name of letters, digits and _, such as loss:lower")
    if not set(words) <= {"higher", "lower", "percent"} or {"higher", "lower"} <= set(words):
        raise ValueError(f"metric {text!r}: expected NAME:higher or NAME:lower, and :percent behind it for shares of 1")
    if not words and name in METRICS:
        return METRICS[name].judge
    if not {"higher", "lower"} & set(words):
        raise ValueError(f"metric {text!r}: say which way is better, {name}:higher or {name}:lower")
    return Judge(name, name.replace("_", " "), "higher" in words, "percent" in words)
