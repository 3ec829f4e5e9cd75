"""Passes on the hardest samples, whose loss is highest or rose most: losses per sample, and a batch of the chosen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from steppe._batch import Work, batch_size, checked, chosen_samples, count_of
from steppe._graphs import NO_GRAPH
from steppe.views import Look


def by_loss(look: Look | None) -> bool:
    """Whether a look chooses its samples by their losses."""
    return look is not None and look.chosen is not None


def per_sample(look: Look | None, hardest: float | None) -> bool:
    """Whether the loss function must return one loss per sample."""
    return hardest is not None or (look is not None and look.chosen is not None)


@dataclass
class PerSample(Work):
    """Work whose ``loss_of`` returns one loss per sample; the loss of a batch is their mean.

    After :meth:`run`, ``losses`` are those of each batch, detached.
    """

    losses: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a closure alone."""
        if not all(self.batches):
            raise TypeError(
                "a pass is on the hardest samples (hardest=..., or a look at them), but backward() was given a "
                "closure; expected backward(loss_of, batch), so that samples can be taken out of the batch"
            )

    def run(self) -> Tensor:
        """One pass over everything; the losses per sample are kept."""
        self.losses = []
        return super().run()

    def loss(self, arguments: tuple[Any, ...]) -> Tensor:
        losses = _one_each(self._output(arguments), *arguments)
        self.losses.append(losses.detach().clone())  # a CUDA graph may write its output again
        return checked(losses.mean())

    def rises(self, losses: list[Tensor]) -> list[Tensor]:
        """How much the loss of each sample rose since :meth:`run`, on the losses' device; nobody waits for it."""
        return [now - before for now, before in zip(losses, self.losses, strict=True)]

    @torch.no_grad()
    def seen(self) -> tuple[list[Tensor], Tensor]:
        """The losses of each batch at the present weights, by a forward pass without a graph, and that of the whole."""
        # Copies: a CUDA graph may write its output again.
        try:
            losses = [_one_each(self._output(batch), *batch).clone() for batch in self.batches]
        except RuntimeError as error:
            if NO_GRAPH not in str(error):
                raise
            raise RuntimeError(
                "samples are chosen by a forward pass without a graph, in which the loss took a derivative of its own; "
                "expected one that takes none (no autograd.grad), or a method that chooses no samples"
            ) from error
        torch.clear_autocast_cache()  # casts made without a graph would cut the next pass off from its weights
        return losses, torch.stack([each.mean() for each in losses]).sum()

    def taken(self, marks: list[Tensor], samples: int | float, falls: bool = False) -> PerSample:
        """The samples of each batch with the highest marks (``falls``: the lowest), in the batch's own order."""
        rows = [(-m if falls else m).topk(count_of(samples, len(m))).indices.sort().values for m in marks]
        batches = tuple((chosen_samples(b, r),) for (b,), r in zip(self.batches, rows, strict=True))
        return replace(self, batches=batches, losses=[])


def _one_each(losses: Any, batch: Any) -> Tensor:
    if not isinstance(losses, Tensor):
        raise TypeError(
            f"the loss function returned {type(losses).__name__}; expected a tensor with one loss per sample"
        )
    size = batch_size(batch)
    if losses.shape != (size,):
        raise ValueError(
            f"the loss has shape {tuple(losses.shape)}; expected one loss per sample, shape ({size},), to choose the "
            'samples whose loss rose most: return per-sample losses, such as cross_entropy(..., reduction="none")'
        )
    return losses
