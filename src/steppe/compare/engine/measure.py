"""What is measured about a trained model: its metrics, forward passes, sharpness, the loss along the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from steppe._algebra import add_scaled_
from steppe._backup import SavedWeights
from steppe._recorded import in_recording
from steppe.compare.data.examples import Split
from steppe.compare.data.losses import Loss, each_of
from steppe.compare.data.metrics import METRICS, Metric
from steppe.lora.balance import Balancedness

SLICE_POINTS, SLICE_RADII = 21, 10.0
"""The loss slice has this many points and reaches this many sharpness radii to either side."""


class PassCounter:
    """Counts the examples that go forward through `model` while it is in training mode.

    A forward pass without a graph, which no backward follows, counts a third.
    """

    def __init__(self, model: nn.Module) -> None:
        self.examples = 0.0
        model.register_forward_pre_hook(self._count)

    def _count(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if model.training and not in_recording():
            self.examples += _examples(inputs) * (1 if torch.is_grad_enabled() else 1 / 3)

    def replayed(self, batch: tuple[Any, Tensor]) -> None:
        """Count a batch that a recorded look goes through, of which the model hears nothing."""
        self.examples += _examples(batch)


def _examples(inputs: Any) -> int:
    return len(pytree.tree_leaves(inputs)[0])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode, and back: normalisation uses its running statistics, nothing is dropped."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


@dataclass
class Balance:
    """Follows |B|, B = 1/2 (||x||^2 - ||y||^2) of the pairs of a model, relative to where each pair began."""

    probe: Balancedness
    epochs: list[float]

    @classmethod
    def of(cls, model: nn.Module) -> Balance | None:
        """A first look at the pairs of `model`; None where it has no adapters."""
        if not any("lora_" in name for name, _ in model.named_parameters()):
            return None
        made = cls(Balancedness(model), [])
        made.note(0)
        return made

    def note(self, epoch: float) -> None:
        """Note where the pairs are now."""
        self.probe.record()
        self.epochs.append(epoch)

    def as_dict(self) -> dict[str, list[float]]:
        """Epochs, and the mean over the pairs of |B| divided by |B| at the start."""
        pairs = [[abs(b) / abs(values[0]) for b in values] for values in self.probe.values().values() if values[0]]
        return {"epoch": self.epochs, "share": [sum(each) / len(pairs) for each in zip(*pairs, strict=True)]}


def chunks(split: Split) -> Iterator[Split]:
    """`split` in pieces of a size that memory allows."""
    for index in torch.arange(len(split), device=split.y.device).split(split.chunk):
        yield split.take(index)


@torch.no_grad()
def metrics(model: nn.Module, split: Split, wanted: Sequence[Metric], outputs: int) -> dict[str, float]:
    """The metrics of `model` over all of `split`, in evaluation mode, by name."""
    meters = {metric.name: metric.start(outputs) for metric in wanted}
    with evaluating(model):
        for part in chunks(split):
            output = model(part.x)
            for meter in meters.values():
                meter.update(output, part.y)
    found = {name: float(meter.compute()) for name, meter in meters.items()}
    wrong = next((each.name for each in wanted if each.judge.oversized(found[each.name])), None)
    if wrong is not None:
        raise ValueError(
            f"metric {wrong!r} is {found[wrong]:g}; with percent=True it is a share of one: divide it by 100, or leave "
            "that out"
        )
    return found


def accuracy(model: nn.Module, split: Split) -> float:
    """Share of examples whose largest output is their label, 0 to 1."""
    return metrics(model, split, [METRICS["accuracy"]], 0)["accuracy"]


@torch.no_grad()
def mean_loss(model: nn.Module, split: Split, loss: Loss = "cross_entropy") -> float:
    """Mean loss, in evaluation mode."""
    with evaluating(model):
        total = sum(len(part) * float(each_of(loss, model(part.x), part.y).mean()) for part in chunks(split))
    return total / len(split)


def ascent_direction(model: nn.Module, split: Split, loss: Loss = "cross_entropy") -> list[Tensor]:
    """g/||g|| with g the gradient of the mean loss over all of `split` and the norm over all trainable weights."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradient = [torch.zeros_like(weight) for weight in weights]
    with evaluating(model):
        for part in chunks(split):
            mean = each_of(loss, model(part.x), part.y).mean() * (len(part) / len(split))
            parts = torch.autograd.grad(mean, weights, allow_unused=True, materialize_grads=True)
            add_scaled_(gradient, parts, 1.0)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradient]))
    return [g / norm if norm > 0 else g for g in gradient]


def losses_along(model: nn.Module, split: Split, distances: list[float], loss: Loss = "cross_entropy") -> list[float]:
    """L(w + t g/||g||) for each t of `distances`, over all of `split`; the weights come back bit for bit."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    direction = ascent_direction(model, split, loss)
    saved, losses = SavedWeights(weights), []
    try:
        for t in distances:
            saved.back()
            if t:  # a direction that is not finite leaves the weights themselves alone
                with torch.no_grad():
                    add_scaled_(weights, direction, t)
            losses.append(mean_loss(model, split, loss))
    finally:
        saved.back()
    return losses


def sharpness_and_slice(
    model: nn.Module, split: Split, rho: float, loss: Loss = "cross_entropy"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """L(w+eps) - L(w) with eps = rho g/||g||, and the loss along that direction; g over all of `split`."""
    reach = SLICE_RADII * rho
    grid = [reach * (2 * i / (SLICE_POINTS - 1) - 1) for i in range(SLICE_POINTS)]
    here, there, *losses = losses_along(model, split, [0.0, rho, *grid], loss)
    return {"rho": rho, "value": there - here}, {"t": grid, "loss": losses}
