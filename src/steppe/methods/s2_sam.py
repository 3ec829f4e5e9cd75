"""S2-SAM, single-step SAM: Ji et al., NeurIPS 2024."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ahead import Previous
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def S2SAM(model: nn.Module, optimizer: Given, *, rho: Value = 0.05, **common: Any) -> SharpnessAware:
    """Perturb along the gradient of the step before, before the only pass: eps = rho d_old / ||d_old||, d = g~.

    d_old is what the optimizer was handed at its latest real step, global norm; the first step is a plain one. The
    ascent is one step old, as in AsyncSAM, on one device. ``backward`` returns the loss at w + eps.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, Euclidean radius as SAM's.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1 pass; two parameter-sized buffers while perturbed, one between steps.

    Source: "A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient and Accurate Sparse
    Training" (openreview MJgMMqMDu4) and the authors' code (github.com/jjsrf/SSAM-NEURIPS2024).
    """
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho, direction=Previous()), **common)


ROW = Row(
    name="s2_sam",
    title="S2-SAM",
    recipe=S2SAM,
    year=2024,
    paper="Ji, Li, Fu, et al., NeurIPS 2024, openreview MJgMMqMDu4",
    passes="1",
    buffers="2 (1 between steps)",
    use="when a second pass cannot be afforded; any optimizer",
    good=({}, {"rho": 0.2}),
    bad=BAD_RHO,
)
