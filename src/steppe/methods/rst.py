"""RST, randomised sharpness-aware training: Zhao, Zhang, Hu, arXiv 2203.09962 (older name SS-SAM)."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._look import with_samples
from steppe.methods._probability import draws, probability
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def RST(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.05,
    p: float = 0.5,
    schedule: str = "constant",
    p_end: float | None = None,
    total_steps: int | None = None,
    start_step: int = 0,
    samples: int | float | None = None,
    cuda_graph: bool = False,
    **common: Any,
) -> SharpnessAware:
    """SAM on a random share of the steps: X_t ~ Bernoulli(p(t)); d = g~ where X_t = 1, else d = g.

    Schedules over T = ``total_steps`` [mean share of SAM steps]: ``constant`` p [p]; ``piecewise1`` 0 while t <= pT,
    then 1 [1-p]; ``piecewise2`` 1 while t <= pT, then 0 [p]; ``piecewise3`` p while t <= T/2, then 1-p [1/2];
    ``linear1`` rising, mean p [p]; ``linear2`` from p to 1-p [1/2]; ``trigonometric`` half a cosine from p to ``p_end``
    [(p + p_end)/2]. At the default p = 1/2 three of them, ``piecewise3``, ``linear2`` and ``trigonometric`` without a
    ``p_end``, are constant, and a warning says so.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer; SGD with Nesterov momentum in the paper.
        rho: rho, as SAM's; 0.05 to 0.1 in the paper.
        p: the schedule's parameter, in [0, 1].
        schedule: one of the seven names.
        p_end: p1 of "trigonometric"; 1 - p when None.
        total_steps: T, optimizer steps of the whole training; needed by all but "constant".
        start_step: no ascent before this step (the learning rate's warm-up).
        samples: ascend on the first ``samples`` of each batch only (cost 1 + mean p samples/batch); None is the paper.
        cuda_graph: record the pass over these samples and replay it, on a GPU (:class:`steppe.Look`).
        common: ``seed`` (the draws are a function of seed and step), ``same_dropout`` and ``generators``.

    Cost: 1 + mean p passes; one parameter-sized buffer while perturbed.

    Source: arXiv 2203.09962; schedules as in the authors' code, "trigonometric" recalled.
    """
    return SharpnessAware(
        model,
        optimizer,
        ascent=Ascent(rho=rho),
        schedule=draws(probability(p, schedule, p_end, total_steps), start_step),
        **with_samples(samples, common, cuda_graph),
    )


ROW = Row(
    name="rst",
    title="RST",
    recipe=RST,
    year=2022,
    paper="Zhao, Zhang, Hu, 2022, arXiv 2203.09962",
    passes="1 + mean p",
    buffers="1",
    use="the simplest saving: SAM's step on a share p of the steps",
    good=({}, {"p": 0.0}, {"p": 1}, {"schedule": "linear1", "total_steps": 100}, {"start_step": 3}),
    bad=(*BAD_RHO, {"p": 1.5}, {"schedule": "cubic"}, {"schedule": "linear2"}, {"p_end": 0.3}, {"start_step": -1})
    + ({"samples": 0},),
)
