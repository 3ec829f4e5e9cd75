"""MSAM, Momentum-SAM: Becker, Altrock, Risse, arXiv 2401.12033."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ahead import Momentum
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def MSAM(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 3.0,
    sign: int = -1,
    decay: float | None = None,
    **common: Any,
) -> SharpnessAware:
    """Perturb along the optimizer's momentum, before the only pass: eps = -rho v / ||v||, d = g~.

    v is the momentum that the latest steps left, global norm; on the first step there is none and the step is a plain
    one. The paper keeps the weights perturbed between steps and swaps them for evaluation; here they are perturbed only
    inside ``backward``, to the same gradients, so that evaluation and checkpoints need no swap. ``backward`` returns
    the loss at w + eps.

    Args:
        model: the model whose loss is minimised.
        optimizer: one that keeps momentum (SGD with momentum, Adam and its kin), or any with ``decay``.
        rho: rho, Euclidean radius; 3 for SGD, 3 to 10 for AdamW on CIFAR-100 and ImageNet: some 15 times SAM's.
        sign: -1 as in the paper, against torch's momentum buffer; 1 climbs along the averaged gradient.
        decay: None: the optimizer's own momentum. A number in [0, 1): an average of the gradients, kept here.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1 pass; one parameter-sized buffer while perturbed, with ``decay`` one more between steps.

    Raises:
        ValueError: the optimizer keeps no momentum and ``decay`` is not set.

    Source: arXiv 2401.12033, Algorithm 1 and the authors' code (github.com/MarlonBecker/MSAM).
    """
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho, direction=Momentum(sign, decay)), **common)


ROW = Row(
    name="msam",
    title="MSAM",
    recipe=MSAM,
    year=2024,
    paper="Becker, Altrock, Risse, arXiv 2401.12033",
    passes="1",
    buffers="1",
    use="when a second pass cannot be afforded; momentum needed",
    good=({}, {"sign": 1, "rho": 0.1}, {"decay": 0.9}),
    bad=(*BAD_RHO, {"sign": 0}, {"decay": 1.0}),
    rho_factor=15.0,
)
