"""F-SAM, friendly SAM: Li et al., CVPR 2024, arXiv 2403.12350."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent, Friendly
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def FSAM(
    model: nn.Module, optimizer: Given, *, rho: Value = 0.05, sigma: float = 1.0, decay: float = 0.9, **common: Any
) -> SharpnessAware:
    """Perturb along the batch's own noise: eps = rho (g - sigma m) / ||g - sigma m||, d = g~.

    The average m <- lambda m + (1 - lambda) g is updated first.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, as SAM's.
        sigma: sigma, share of the average that is taken away, >= 0; 1. 0 is SAM.
        decay: lambda of the average, in [0, 1]; 0.6 to 0.95. m starts at 0.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes; three parameter-sized buffers while perturbed, one of them kept between steps
    (what the last real step left is kept until this one is real, so that a skipped step changes nothing).

    Source: arXiv 2403.12350, Algorithm 1. The authors' code takes the average before it is updated.
    """
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho, direction=Friendly(sigma, decay)), **common)


ROW = Row(
    name="fsam",
    title="F-SAM",
    recipe=FSAM,
    year=2024,
    paper="Li, Zhou, He, Cheng, Huang, CVPR 2024, arXiv 2403.12350",
    passes="2",
    buffers="3 (1 between steps)",
    use="small batches, label noise",
    good=({}, {"sigma": 0.0}, {"decay": 0.6}),
    bad=(*BAD_RHO, {"sigma": -1}, {"decay": 1.2}),
)
