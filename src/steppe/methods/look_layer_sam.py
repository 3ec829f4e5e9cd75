"""Look-LayerSAM: Liu et al., CVPR 2022, arXiv 2203.02714."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value, check_choice, check_count
from steppe.ascent import Ascent
from steppe.combine import Reuse
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe
from steppe.schedule import Every


@recipe
def LookLayerSAM(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.1,
    k: int = 5,
    alpha: Value = 0.7,
    push: str = "guarded",
    layerwise: str = "trust",
    **common: Any,
) -> SharpnessAware:
    """LookSAM's reuse with LayerSAM's layer-wise radius, for very large batches.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer; LAMB in the paper.
        rho: rho, radius relative to each tensor's norm ("trust"); 0.1 to 0.2 in the paper.
        k: k, as in :func:`steppe.LookSAM`.
        alpha: alpha, as in :func:`steppe.LookSAM`.
        push: "guarded", "natural" or "paper", as in :func:`steppe.LookSAM`.
        layerwise: "trust" or "paper", as in :func:`steppe.LayerSAM`.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1 + 1/k passes; three parameter-sized buffers while perturbed, one of them kept between steps
    (what the last real step left is kept until this one is real, so that a skipped step changes nothing).

    Source: arXiv 2203.02714, Algorithm 2, which is ``push="paper"``; "guarded" and "natural" are steppe's.
    """
    check_choice("layerwise", layerwise, ("trust", "paper"))
    check_count("k", k)
    return SharpnessAware(
        model,
        optimizer,
        ascent=Ascent(rho=rho, scope=layerwise),
        schedule=Every(k),
        combine=Reuse(alpha, push),
        **common,
    )


ROW = Row(
    name="look_layer_sam",
    title="Look-LayerSAM",
    recipe=LookLayerSAM,
    year=2022,
    paper="Liu, Mai, Chen, Hsieh, You, CVPR 2022, arXiv 2203.02714",
    passes="1 + 1/k",
    buffers="3 (1 between steps)",
    use="very large batches, on LAMB",
    good=({}, {"push": "paper"}, {"push": "natural", "layerwise": "paper", "rho": 0.01}, {"k": 1}),
    bad=(*BAD_RHO, {"k": -1}, {"layerwise": "global"}),
    rho_factor=0.1,
)
