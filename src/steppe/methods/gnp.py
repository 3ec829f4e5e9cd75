"""GNP, gradient-norm penalty: Zhao, Zhang, Hu, ICML 2022, arXiv 2202.03599."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.combine import Mix
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def GNP(model: nn.Module, optimizer: Given, *, rho: Value = 0.05, gamma: Value = 0.8, **common: Any) -> SharpnessAware:
    """Penalising the gradient's norm: d = (1 - gamma) g + gamma g~ at every step.

    It is the gradient of L + lambda ||grad L|| to first order, with lambda = gamma rho.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: r in the paper, as SAM's rho.
        gamma: alpha in the paper, weight of g~, >= 0; 0.8. 1 is SAM, 0 the base.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes; two parameter-sized buffers while perturbed.

    Source: arXiv 2202.03599, Algorithm 1.
    """
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho), combine=Mix(gamma), **common)


ROW = Row(
    name="gnp",
    title="GNP",
    recipe=GNP,
    year=2022,
    paper="Zhao, Zhang, Hu, ICML 2022, arXiv 2202.03599",
    passes="2",
    buffers="2",
    use="a softer SAM: part of the clean gradient is kept",
    good=({}, {"gamma": 0.5}),
    bad=(*BAD_RHO, {"gamma": -0.1}),
)
