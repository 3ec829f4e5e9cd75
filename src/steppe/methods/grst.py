"""G-RST, the general form of RST: Zhao, Zhang, Hu, arXiv 2203.09962."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value, check
from steppe.ascent import Ascent
from steppe.combine import Mix
from steppe.curves import Quotient
from steppe.gradient import SharpnessAware
from steppe.methods._probability import draws, probability
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def GRST(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.05,
    p: float = 0.5,
    kappa: float = 1.0,
    gamma_max: float = 4.0,
    schedule: str = "constant",
    p_end: float | None = None,
    total_steps: int | None = None,
    start_step: int = 0,
    **common: Any,
) -> SharpnessAware:
    """RST whose rarer SAM steps weigh more: d = (1 - gamma) g + gamma g~ with gamma(t) = min(kappa / p(t), gamma_max).

    E[d] = (1 - kappa) g + kappa g~ at every step: the degree of regularisation is kappa whatever the schedule, and
    kappa = 1 equals SAM in expectation (p = 1/2: d = 2 g~ - g on half of the steps).

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, as SAM's; 0.05 to 0.1 in the paper.
        p: the schedule's parameter, in [0, 1].
        kappa: kappa = gamma p, degree of regularisation, >= 0; 1 is SAM's, p is RST's.
        gamma_max: cap of gamma, as rising schedules begin at p = 0; below kappa/p the degree is less than kappa.
        schedule: as in :func:`steppe.RST`.
        p_end: as in :func:`steppe.RST`.
        total_steps: as in :func:`steppe.RST`.
        start_step: no ascent before this step.
        common: ``seed``, ``same_dropout`` and ``generators``.

    Cost: 1 + mean p passes; two parameter-sized buffers while perturbed (one where gamma = 1).

    Source: arXiv 2203.09962; that gamma p is held constant is recalled.
    """
    check("kappa", kappa, 0.0)
    if gamma_max is not None:
        check("gamma_max", gamma_max, 0.0)
    chance = probability(p, schedule, p_end, total_steps)
    gamma: Value = Quotient(kappa, chance, gamma_max)
    return SharpnessAware(
        model, optimizer, ascent=Ascent(rho=rho), schedule=draws(chance, start_step), combine=Mix(gamma), **common
    )


ROW = Row(
    name="grst",
    title="G-RST",
    recipe=GRST,
    year=2022,
    paper="Zhao, Zhang, Hu, 2022, arXiv 2203.09962",
    passes="1 + mean p",
    buffers="2",
    use="SAM's gradient in expectation at half of its extra cost (p = 1/2)",
    good=({}, {"kappa": 0.5}, {"schedule": "piecewise3", "p": 0.3, "total_steps": 100}),
    bad=(*BAD_RHO, {"kappa": -1}, {"gamma_max": -2}, {"p": -0.5}),
)
