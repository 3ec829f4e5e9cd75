"""LookSAM: Liu et al., CVPR 2022, arXiv 2203.02714."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value, check_count
from steppe.ascent import Ascent
from steppe.combine import Reuse
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe
from steppe.schedule import Every


@recipe
def LookSAM(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.05,
    k: int = 5,
    alpha: Value = 0.7,
    push: str = "guarded",
    **common: Any,
) -> SharpnessAware:
    """SAM every k-th step; between, the part of SAM's gradient that changes slowly is used again.

    t mod k = 0:  d = g~, and g_v = g~ - (<g~, g> / ||g||^2) g is stored.
    otherwise:    d = g + c g_v with, by ``push`` (all norms and inner products are global),
                  "guarded": c = min(||g|| / ||g at the refresh||, alpha ||g|| / ||g_v||), and 0 if <g_v, g> < 0;
                  "natural": c = ||g|| / ||g at the refresh||, which takes no alpha;
                  "paper":   c = alpha ||g|| / ||g_v||.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer; AdamW in the paper.
        rho: rho, as SAM's.
        k: k, interval of SAM steps in optimizer steps, >= 1; 5 or 10. 1 is SAM.
        alpha: alpha, length of the reused push in lengths of the gradient ("paper") or the most that it may have
            ("guarded"), >= 0; 0.7 in the paper. 0 is the base between SAM steps.
        push: "guarded": as long, beside the gradient, as the correction was at the refresh, no longer than alpha
            allows, and not where the fresh gradient points against it. "natural": the first alone; diverges at radii
            that SAM bears. "paper": alpha alone, often many times a fresh correction: at 0.7 it wrecked trainings here
            that SAM and the base passed (docs/choosing.md); 0.01 to 0.3 is often needed.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1 + 1/k passes; three parameter-sized buffers while perturbed, one of them kept between steps
    (what the last real step left is kept until this one is real, so that a skipped step changes nothing).

    Source: arXiv 2203.02714, Algorithm 1, which is ``push="paper"``; "guarded" and "natural" are steppe's.
    """
    check_count("k", k)
    return SharpnessAware(
        model, optimizer, ascent=Ascent(rho=rho), schedule=Every(k), combine=Reuse(alpha, push), **common
    )


ROW = Row(
    name="look_sam",
    title="LookSAM",
    recipe=LookSAM,
    year=2022,
    paper="Liu, Mai, Chen, Hsieh, You, CVPR 2022, arXiv 2203.02714",
    passes="1 + 1/k",
    buffers="3 (1 between steps)",
    use="SAM's correction, computed every k-th step and used again between",
    good=({}, {"push": "natural"}, {"push": "paper"}, {"k": 1}, {"alpha": 0.0}),
    bad=(*BAD_RHO, {"k": 0}, {"k": 2.5}, {"alpha": -1}, {"push": "pull"}),
)
