"""GSAM, surrogate gap minimisation: Zhuang et al., ICLR 2022, arXiv 2203.08065."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.combine import SurrogateGap
from steppe.curves import FollowLR
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def GSAM(
    model: nn.Module, optimizer: Given, *, rho: Value | FollowLR = 0.05, alpha: Value = 0.4, **common: Any
) -> SharpnessAware:
    """Follow g~ and climb where only g descends: d = g~ - alpha (g - (<g, g~> / ||g~||^2) g~), which closes the gap.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho_t; a number, or ``steppe.curves.FollowLR(rho_max, rho_min, lr_max, lr_min)`` for the paper's radius
            that follows the learning rate.
        alpha: alpha, weight of the orthogonal part, >= 0; 0.4 (0.1 to 0.7). 0 is SAM.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes; two parameter-sized buffers while perturbed.

    Source: arXiv 2203.08065, Algorithm 1.
    """
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho), combine=SurrogateGap(alpha), **common)


ROW = Row(
    name="gsam",
    title="GSAM",
    recipe=GSAM,
    year=2022,
    paper="Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan, Liu, ICLR 2022, arXiv 2203.08065",
    passes="2",
    buffers="2",
    use="vision transformers; needs alpha tuned",
    good=({}, {"alpha": 0.0}, {"rho": FollowLR(0.1, 0.01, 0.1)}),
    bad=(*BAD_RHO, {"alpha": -0.4}),
)
