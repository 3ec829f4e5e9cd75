"""ESAM, efficient SAM: Du et al., ICLR 2022, arXiv 2110.03141."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value, check
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def ESAM(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.05,
    beta: float = 0.6,
    gamma: float = 0.5,
    **common: Any,
) -> SharpnessAware:
    """Perturb some of the weights; second pass on the samples whose loss rises most: d = grad L_B+(w + eps).

    eps = (m / beta) rho g / ||g|| with m_i = 1 with chance beta, else 0 (stochastic weight perturbation). B+ holds the
    gamma share of the batch with the largest L_i(w + eps) - L_i(w) (sharpness-sensitive data selection), L_B+ is their
    mean loss. ``loss_of`` returns one loss per sample:

        loss = sharp.backward(lambda b: cross_entropy(model(b[0]), b[1], reduction="none"), (x, y))

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, Euclidean radius as SAM's; 0.05 in the paper.
        beta: beta, share of the weights that move, each by itself, in (0, 1]; 0.5 to 0.6 in the paper. It
            saves no time drawn weight by weight; whole tensors left out would (:class:`steppe.Sparse`).
        gamma: gamma, share of the samples in the second pass, in (0, 1]; 0.5 in the paper.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1 + 1/3 + gamma passes (a third: the forward that finds the rise), 1.83 by default, 2 with gamma = 1; one
    parameter-sized buffer while perturbed, none between steps. beta = gamma = 1 is SAM.

    Raises:
        ValueError, TypeError: ``loss_of`` returns their mean, or ``backward`` is not given a batch.

    Source: arXiv 2110.03141, Algorithm 1. The authors' code (github.com/dydjw9/Efficient_SAM) freezes whole tensors at
    random where the paper draws weights, and takes one sample less.
    """
    check("gamma", gamma, 0.0, 1.0, "the share of the samples that the second pass is on")
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho, beta=beta), hardest=gamma, **common)


ROW = Row(
    name="esam",
    title="ESAM",
    recipe=ESAM,
    year=2022,
    paper="Du, Yan, Feng, et al., ICLR 2022, arXiv 2110.03141",
    passes="1 + 1/3 + gamma (1.83 at 0.5)",
    buffers="1",
    use="when batches hold easy samples; the loss must come per sample",
    good=({}, {"gamma": 1.0}, {"beta": 1.0, "gamma": 0.25}),
    bad=(*BAD_RHO, {"beta": 0}, {"gamma": 0}, {"gamma": 1.5}),
    per_sample=True,
)
