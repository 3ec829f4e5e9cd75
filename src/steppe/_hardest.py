"""The second pass on the samples whose loss rose most: losses per sample, their rise, and a batch of the chosen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from steppe._batch import Work, batch_size, checked, chosen_samples, share_of


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
                "the second pass is on the samples whose loss rose most (hardest=...), but backward() was given a "
                "closure; expected backward(loss_of, batch), so that samples can be taken out of the batch"
            )

    def run(self) -> Tensor:
        """One pass over everything; the losses per sample are kept."""
        self.losses = []
        return super().run()

    def _loss(self, arguments: tuple[Any, ...]) -> Tensor:
        losses = _one_each(self.loss_of(*arguments), *arguments)
        self.losses.append(losses.detach().clone())  # a CUDA graph may write its output again
        return checked(losses.mean())

    @torch.no_grad()
    def hardest(self, share: float, falls: bool = False) -> tuple[PerSample, Tensor]:
        """The samples of each batch whose loss rose most since :meth:`run`, and the whole loss at the present weights.

        (``falls``: fell most, where the optimizer climbs.)

        One forward pass without a graph. The choice is made on the losses' device, and nobody waits for it.
        """
        chosen: list[tuple[Any]] = []
        means: list[Tensor] = []
        for (batch,), before in zip(self.batches, self.losses, strict=True):
            now = _one_each(self.loss_of(batch), batch)
            means.append(now.mean())
            chosen.append((_risen_most(batch, before - now if falls else now - before, share),))
        torch.clear_autocast_cache()  # casts made without a graph would cut the next pass off from its weights
        return replace(self, batches=tuple(chosen), losses=[]), torch.stack(means).sum()


def _risen_most(batch: Any, rise: Tensor, share: float) -> Any:
    rows = rise.topk(share_of(share, len(rise))).indices.sort().values  # in the batch's own order
    return chosen_samples(batch, rows)


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
