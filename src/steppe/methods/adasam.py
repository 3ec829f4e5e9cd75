"""AdaSAM: Sun et al., Neural Networks 2024, arXiv 2303.00565."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given, real
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe
from steppe.optim import AMSGrad


@recipe
def AdaSAM(model: nn.Module, optimizer: Given, *, rho: Value = 0.05, **common: Any) -> SharpnessAware:
    """SAM's gradient feeding AMSGrad in the paper's form: both moments are of g~, and there is no bias correction.

    Args:
        model: the model whose loss is minimised.
        optimizer: a :class:`steppe.optim.AMSGrad`. For SAM on AdamW, which many tables call AdaSAM, use
            :func:`steppe.SAM`.
        rho: rho, as SAM's.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes; one parameter-sized buffer while perturbed (and AMSGrad's three).

    Raises:
        TypeError: the optimizer is another one.

    Source: arXiv 2303.00565, Algorithm 1 (the delayed second moment is analysis only).
    """
    if not all(isinstance(one, AMSGrad) for one in real(optimizer)):
        raise TypeError(
            f"AdaSAM was given {type(optimizer).__name__}; expected steppe.optim.AMSGrad, the paper's base without "
            "bias correction (for SAM on AdamW or any other base use steppe.SAM)"
        )
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho), **common)


ROW = Row(
    name="adasam",
    title="AdaSAM",
    recipe=AdaSAM,
    year=2023,
    paper="Sun, Shen, Zhong, Ding, Chen, Sun, Li, Sun, Tao, Neural Networks 2024, arXiv 2303.00565",
    passes="2",
    buffers="1 (+3 of AMSGrad)",
    use="fine-tuning of transformers, and large batches",
    good=({}, {"rho": 0.01}),
    bad=BAD_RHO,
    optimizer=lambda params, lr=1e-3: AMSGrad(params, lr=lr),
)
