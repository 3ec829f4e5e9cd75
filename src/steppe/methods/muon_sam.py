"""SAM with Muon: the ascent in Muon's norm, after arXiv 2607.26001."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe
from steppe.spectral import Spectral


@recipe
def MuonSAM(
    model: nn.Module, optimizer: Given, *, rho: Value = 0.005, iterations: int | None = 5, **common: Any
) -> SharpnessAware:
    """SAM in the norm that Muon descends in: eps_l = rho U V^T for a matrix g_l = U S V^T, d = g~.

    For a vector eps_l = rho g_l / ||g_l||. This is the worst case, to first order, over perturbations of which no
    matrix has a singular value above rho and no vector is longer: every tensor has the whole radius. Usual with Muon
    for the matrices: ``steppe.MuonSAM(model, [muon, adamw])``.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer, or several.
        rho: rho, largest singular value of each matrix's perturbation, and length of each vector's; >= 0. Of r singular
            values the Euclidean length is rho sqrt(r), so that radii are far smaller than SAM's.
        iterations: of Newton-Schulz for U V^T, Muon's 5; None: exact, by a singular value decomposition.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes, and what an orthogonalisation costs in Muon; one parameter-sized buffer while perturbed.

    Source: after arXiv 2607.26001, ascent in the spectral norm; its text was not read: the treatment of vectors and the
    defaults are steppe's.
    """
    ascent = Ascent(rho=rho, direction=Spectral(iterations), scope="none")
    return SharpnessAware(model, optimizer, ascent=ascent, **common)


ROW = Row(
    name="muon_sam", title="SAM with Muon", recipe=MuonSAM, year=2026, paper="after SAM with Muon, arXiv 2607.26001",
    passes="2 (and an orthogonalisation)", buffers="1", use="where Muon trains the matrices",
    good=({}, {"rho": 0.02, "iterations": None}), bad=(*BAD_RHO, {"iterations": 0}, {"iterations": 2.5}),
    rho_factor=0.1,
)  # fmt: skip
