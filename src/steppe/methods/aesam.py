"""AE-SAM, an adaptive policy to employ SAM: Jiang et al., ICLR 2023."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import Row, recipe
from steppe.schedule import AboveNorm


@recipe
def AESAM(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.05,
    total_steps: int,
    lambda_1: float = -1.0,
    lambda_2: float = 1.0,
    decay: float = 0.9,
    **common: Any,
) -> SharpnessAware:
    """SAM where the gradient is large for its history: ascend iff ||g||^2 >= mu_t + c_t sigma_t, else d = g.

    mu and sigma^2 are running averages of ||g||^2 and its squared deviation; c_t = (t/T) lambda_1 + (1 - t/T) lambda_2.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, as SAM's.
        total_steps: T, optimizer steps of the whole training.
        lambda_1: c at the end, in deviations; -1 (many SAM steps).
        lambda_2: c at the start; 1 (few).
        decay: delta of both averages, in [0, 1]; 0.9.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1 to 2 passes, about 1.5; one parameter-sized buffer while perturbed. Each step reads
    the norm back to the host.

    Source: "An Adaptive Policy to Employ Sharpness-Aware Minimization", ICLR 2023, Algorithm 1; start values recalled.
    """
    schedule = AboveNorm(total_steps, lambda_1, lambda_2, decay)
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho), schedule=schedule, **common)


ROW = Row(
    name="aesam",
    title="AE-SAM",
    recipe=AESAM,
    year=2023,
    paper="Jiang, Yang, Zhang, Kwok, ICLR 2023, arXiv 2304.14647",
    passes="1 to 2",
    buffers="1",
    use="when the data should decide which steps are worth a second pass",
    good=({"total_steps": 100},),
    bad=({"total_steps": 0}, {"total_steps": 100, "decay": 2}, {"total_steps": 100, "rho": -1}),
)
