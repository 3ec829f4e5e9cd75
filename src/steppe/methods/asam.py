"""ASAM: Kwon et al., ICML 2021, arXiv 2102.11600."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Adaptive, Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def ASAM(model: nn.Module, optimizer: Given, *, rho: Value = 0.5, eta: float = 0.01, **common: Any) -> SharpnessAware:
    """Adaptive SAM: eps = rho T^2 g / ||T g|| with T = |w| + eta elementwise, d = g~.

    The radius is measured relative to each weight, so that rescaling layers does not change it. As in the authors' code
    T = 1 for biases.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, radius in the metric, ||T^-1 eps|| = rho; 0.5 on CIFAR-10, 1 on CIFAR-100, 0.5 to 2 usual: about ten
            times SAM's.
        eta: eta, floor of the metric; 0.01. With 0, weights that are zero never move (LoRA's B).
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes; one parameter-sized buffer while perturbed, one more for a moment before the second pass.

    Source: arXiv 2102.11600, Algorithm 1 and the authors' code.
    """
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho, metric=Adaptive(eta)), **common)


ROW = Row(
    name="asam",
    title="ASAM",
    recipe=ASAM,
    year=2021,
    paper="Kwon, Kim, Park, Choi, ICML 2021, arXiv 2102.11600",
    passes="2",
    buffers="1",
    use="layers of very different scale",
    good=({}, {"rho": 2.0, "eta": 0.0}),
    bad=(*BAD_RHO, {"eta": -1}),
    rho_factor=10.0,
)
