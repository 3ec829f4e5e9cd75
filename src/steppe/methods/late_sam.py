"""SAM in a late phase only: Zhou et al., ICLR 2025, arXiv 2410.10373."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import Row, recipe
from steppe.schedule import Window


@recipe
def LateSAM(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.05,
    start: int | None = None,
    stop: int | None = None,
    total_steps: int | None = None,
    **common: Any,
) -> SharpnessAware:
    """The base first, SAM at the end: d = g~ for start <= t < stop, else d = g.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, as SAM's; ``steppe.curves.Through(((start, 0.0), (start + 100, rho)))`` is a ramp.
        start: first SAM step; three quarters of ``total_steps`` when None.
        stop: first step after SAM; None is the end.
        total_steps: T, optimizer steps of the whole training; needed only without ``start``.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1 + (stop - start)/T passes; one parameter-sized buffer while perturbed.

    Source: arXiv 2410.10373: a few epochs of SAM at the end find nearly the minima of a whole run; a tail of 0.3 in
    arXiv 2609.17575. The quarter is steppe's. A tail that follows the learning rate: :func:`steppe.TailSAM`.
    """
    if start is None:
        if total_steps is None:
            raise ValueError(
                "LateSAM was given neither start nor total_steps; expected start (the first SAM step) or both"
            )
        start = (3 * total_steps) // 4
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho), schedule=Window(start, stop), **common)


ROW = Row(
    name="late_sam",
    title="Late-phase SAM",
    recipe=LateSAM,
    year=2024,
    paper="Zhou, Wang, Mao, Li, Yan, ICLR 2025, arXiv 2410.10373",
    passes="1 + share of SAM steps",
    buffers="1",
    use="a nearly finished training, or a budget that allows SAM for a while",
    good=({"start": 2}, {"total_steps": 8}, {"start": 0, "stop": 4}),
    bad=({}, {"start": -1}, {"start": 5, "stop": 2}, {"start": 1, "rho": -1}),
)
