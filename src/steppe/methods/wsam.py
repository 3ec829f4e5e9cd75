"""WSAM, weighted SAM: Yue et al., KDD 2023, arXiv 2305.15817."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.combine import Decoupled
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def WSAM(model: nn.Module, optimizer: Given, *, rho: Value = 0.05, gamma: float = 0.9, **common: Any) -> SharpnessAware:
    """Sharpness as a regulariser of its own weight: the base steps along g, then w <- w - lr gamma/(1-gamma) (g~ - g).

    The correction stays out of the base's moments (decoupled, like AdamW's decay). If the gradient is clipped or
    unscaled between ``backward`` and the step, the correction is scaled alike, so that clipping cannot turn descent
    into ascent. That is told by its norm: a gradient of your own (a penalty's) is added before ``backward``, or in the
    loss, as one that comes after it would pass for a scaling.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, as SAM's.
        gamma: gamma in [0, 1); 0.9 weighs sharpness nine times the loss; 0.5 equals SAM on plain SGD, 0 is the base.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes; two parameter-sized buffers while perturbed, one until the optimizer's step.

    Source: arXiv 2305.15817, Algorithms 1 and 2.
    """
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho), combine=Decoupled(gamma), **common)


ROW = Row(
    name="wsam",
    title="WSAM",
    recipe=WSAM,
    year=2023,
    paper="Yue, Jiang, Ye, Gao, Liu, Zhang, KDD 2023, arXiv 2305.15817",
    passes="2",
    buffers="2",
    use="when the weight of sharpness should be tuned apart from its radius",
    good=({}, {"gamma": 0.5}, {"gamma": 0.0}),
    bad=(*BAD_RHO, {"gamma": 1.0}, {"gamma": -0.5}),
)
