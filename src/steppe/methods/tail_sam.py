"""SAM in the tail in which the learning rate falls, with a radius that grows meanwhile."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given, Optimizers
from steppe._parts import check, check_count
from steppe.ascent import Ascent
from steppe.curves import ROUNDED, FollowLR
from steppe.gradient import SharpnessAware
from steppe.methods._row import Row, recipe
from steppe.schedule import Window


@recipe
def TailSAM(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: float = 0.05,
    begin: float = 1.0,
    ramp: float = 1.0,
    lr_max: float | None = None,
    warmup: int = 0,
    **common: Any,
) -> SharpnessAware:
    """The base while the learning rate is high, SAM as it falls, d = g~: rho_t = rho min(f_t / ramp, 1).

    f_t = max(0, 1 - lr_t / (begin lr_max)) is how far the rate has fallen below ``begin lr_max``: the radius grows from
    0 to rho while f grows from 0 to ``ramp``; steps of radius 0 are the base's. With a rate that stands still and then
    falls (warm-up, stable, decay) ``begin=1`` is the tail; with a cosine over the whole training, ``begin=0.2`` is its
    last 30 %.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer, with a scheduler of its learning rate.
        rho: rho, as SAM's, at the end of the ramp; >= 0.
        begin: share of the highest learning rate below which SAM begins, in (0, 1].
        ramp: how far the rate has fallen where the radius is all of rho, in [0, 1]; 1: at a rate of 0. 0: at once, a
            tail of SAM as in arXiv 2609.17575.
        lr_max: the highest learning rate; None is the optimizer's own before any scheduler, or the peak of one that
            has its own (OneCycleLR, if it is built before this), of its groups the highest (groups at lower rates are
            then perturbed from the start).
        warmup: steps before which the rate rises and nothing is perturbed, >= 0.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1 + the share of steps in the tail; one parameter-sized buffer while perturbed.

    Source: after arXiv 2410.10373 and arXiv 2609.17575, in which SAM in the tail of the training is all of SAM; the
    radius that follows the rate is steppe's. A tail and a ramp by steps: :func:`steppe.LateSAM`.
    """
    check("rho", rho, 0.0)
    check("begin", begin, 0.0, 1.0)
    check("ramp", ramp, 0.0, 1.0)
    check_count("warmup", warmup, 0)
    peak = begin * (_peak(optimizer) if lr_max is None else lr_max)
    if not peak > 0:
        raise ValueError(
            f"begin={begin!r} of the highest learning rate, lr_max={lr_max!r}, is {peak:g}; expected a number above 0: "
            "give lr_max, the highest that the rate will be, where the optimizer begins at 0"
        )
    whole = (1 - max(ramp, ROUNDED)) * peak
    radius = FollowLR(rho_max=0.0, rho_min=rho, lr_max=peak, lr_min=whole)
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=radius), schedule=Window(warmup), **common)


def _peak(optimizer: Given) -> float:
    groups = Optimizers(optimizer).param_groups
    # OneCycleLR puts a fraction of its peak in the place of the optimizer's own rate, and the peak beside it.
    return max(float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in groups)


ROW = Row(
    name="tail_sam", title="Tail SAM", recipe=TailSAM, year=2026,
    paper="after Zhou, Wang, Mao, Li, Yan, ICLR 2025, arXiv 2410.10373, and arXiv 2609.17575",
    passes="1 + share of the tail", buffers="1",
    use="a learning rate that stands and then falls, or a cosine whose end is worth a second pass",
    good=({"lr_max": 0.2}, {}, {"begin": 0.5, "warmup": 1}, {"lr_max": 0.2, "ramp": 0.0}),
    bad=({"ramp": 1.5}, {"rho": -0.1}, {"begin": 0.0}, {"begin": 1.5}, {"warmup": -1}, {"lr_max": 0.0}),
)  # fmt: skip
