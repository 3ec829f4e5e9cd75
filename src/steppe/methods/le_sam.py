"""LE-SAM, a radius by a budget of loss: Wang, Liu, Xie, Gao, ICML 2026, arXiv 2605.10183."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.curves import LossBudget
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def LESAM(
    model: nn.Module, optimizer: Given, *, sigma: Value = 0.35, rho: Value = 0.3, **common: Any
) -> SharpnessAware:
    """SAM whose radius gives the loss a fixed rise to first order: rho_t = min(sigma_t / ||g||, rho), d = g~.

    Where gradients are small the ascent goes further, so that the curvature shows. With ``sigma`` large it is SAM. Any
    other ascent takes the same radius: ``rho=steppe.curves.LossBudget(sigma, rho_max)``.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        sigma: sigma_t, the budget in units of the loss, >= 0; 0.35 in the authors' script for CIFAR-100, where it rises
            from 0 over the first 10 of 200 epochs and falls to 0, along a cosine, from epoch 160 on; in straight lines
            that is ``steppe.curves.Through(((0, 0.0), (10 * n, 0.35), (160 * n, 0.35), (200 * n, 0.0)))``, n steps an
            epoch. Steps of 0 are the base's.
        rho: rho_max, the largest radius; 0.3 in the authors' code, 999 (none) in their script.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes; one parameter-sized buffer while perturbed, none between steps.

    Source: arXiv 2605.10183 and the authors' code (github.com/smithgun2005/LE-SAM-ICML2026).
    """
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=LossBudget(sigma, rho)), **common)


ROW = Row(
    name="le_sam", title="LE-SAM", recipe=LESAM, year=2026, paper="Wang, Liu, Xie, Gao, ICML 2026, arXiv 2605.10183",
    passes="2", buffers="1", use="where gradient norms change much over a training, and one radius does not fit",
    good=({"sigma": 0.05}, {}, {"sigma": 0.0}, {"rho": 0.0}), bad=(*BAD_RHO, {"sigma": -1.0}, {"sigma": "big"}),
    tunes="sigma",
)  # fmt: skip
