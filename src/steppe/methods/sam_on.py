"""SAM-ON, SAM on normalisation layers only: Mueller et al., NeurIPS 2023, arXiv 2306.04226."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def SAMON(model: nn.Module, optimizer: Given, *, rho: Value = 0.5, **common: Any) -> SharpnessAware:
    """Perturb only scales and shifts of normalisation layers: eps = rho g_N / ||g_N|| there, 0 elsewhere; d = g~.

    Args:
        model: a model with normalisation layers: torch's own, or any whose class has the word "Norm" in its name
            (LlamaRMSNorm, not NormalizedLinear) and owns no matrix.
        optimizer: any base optimizer.
        rho: rho, Euclidean radius over the normalisation parameters alone; 0.5, larger than SAM's.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes; a buffer of the size of the normalisation parameters (often 0.1 % of all).

    Raises:
        ValueError: the model has no normalisation parameters in the optimizer.

    Source: arXiv 2306.04226.
    """
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho, subset="norm"), **common)


ROW = Row(
    name="sam_on",
    title="SAM-ON",
    recipe=SAMON,
    year=2023,
    paper="Mueller, Vlaar, Rolnick, Hein, NeurIPS 2023, arXiv 2306.04226",
    passes="2",
    buffers="0 (normalisation only)",
    use="BatchNorm and LayerNorm networks when memory is short",
    good=({}, {"rho": 0.1}),
    bad=BAD_RHO,
    rho_factor=5.0,
)
