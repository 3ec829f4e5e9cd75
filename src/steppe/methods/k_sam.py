"""K-SAM: both gradients on the samples of the highest loss: Ni et al., arXiv 2210.12864."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value, check
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe
from steppe.views import Look


@recipe
def KSAM(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.05,
    samples: int | float = 0.25,
    descent: float | None = 0.5,
    **common: Any,
) -> SharpnessAware:
    """SAM on the hardest samples of each batch: eps = rho g_A / ||g_A||, d = grad L_D(w + eps).

    L_A and L_D are the mean losses of the ``samples`` and of the ``descent`` share with the highest loss at w, which a
    forward pass over the batch without a graph finds. Unlike ESAM's, they are chosen before the weights move.
    ``loss_of`` returns one loss per sample:

        loss = sharp.backward(lambda b: cross_entropy(model(b[0]), b[1], reduction="none"), (x, y))

    ``backward`` returns the loss of the whole batch at w. Of fewer than all samples d is the gradient of another loss
    than the base's, whose hard (and wrongly labelled) samples weigh more.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, Euclidean radius as SAM's.
        samples: k of the ascent, a whole number or a fraction in (0, 1) of the batch.
        descent: k of the descent, a share of the batch in (0, 1]; None is the whole batch: only the ascent's few
            samples are chosen.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1/3 + samples/batch + descent passes, 1.08 by default (a third: the forward that finds the losses), 4/3 +
    samples/batch with ``descent=None``; one parameter-sized buffer while perturbed, none between steps.

    Raises:
        ValueError, TypeError: ``loss_of`` returns their mean, or ``backward`` is not given a batch.

    Source: arXiv 2210.12864, which takes both gradients on the top k samples. The defaults of the two shares are
    steppe's.
    """
    if descent is not None:
        check("descent", descent, 0.0, 1.0, "a share of the batch; None is all of it")
    look = Look(samples, chosen="hardest")
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho), look=look, hardest=descent, **common)


ROW = Row(
    name="k_sam", title="K-SAM", recipe=KSAM, year=2022,
    paper="Ni, Chiang, Geiping, Goldblum, Wilson, Goldstein, arXiv 2210.12864",
    passes="1/3 + samples/batch + descent (1.08)", buffers="1",
    use="SAM at about the base's cost, on batches with easy samples; the loss must come per sample",
    good=({}, {"samples": 2, "descent": None}, {"samples": 0.5, "descent": 1.0}),
    bad=(*BAD_RHO, {"samples": 0}, {"samples": 1.5}, {"descent": 0}, {"descent": 1.5}), per_sample=True,
)  # fmt: skip
