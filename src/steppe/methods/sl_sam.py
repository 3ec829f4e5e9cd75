"""SL-SAM, sparse-layer SAM: arXiv 2602.09395, 2026."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe
from steppe.select import Sparse


@recipe
def SLSAM(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.01,
    s: float = 0.2,
    level: str | Callable[[str], str] = "tensor",
    step_size: float = 1e-3,
    p_min: float = 1e-3,
    **common: Any,
) -> SharpnessAware:
    """SAM on a few tensors at a time: each step draws tensor i with probability p_i, and both passes are about those.

    The others require no gradient in either pass: none is computed for them, none stored, the optimizer leaves them and
    their moments alone, and no backward goes below the earliest tensor that was drawn. With n_i the first-pass
    gradient norms of the drawn tensors, l_i = max_j (n_j / p_j)^2 - (n_i / p_i)^2 and w_i = p_i exp(-a l_i / p_i)
    after every real step; p is w brought to sum p = s L, p_min <= p_i <= 1 (:class:`steppe.Sparse`).

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer; AdamW in the paper. It must leave a parameter alone whose gradient is None, as
            torch's do.
        rho: rho, as SAM's, over the drawn tensors together; 0.01 in the paper.
        s: s, expected share of drawn tensors, in [p_min, 1]; 0.2 in the paper. 1 is SAM.
        level: "tensor"; "block", whole layers at a time, which saves more time, as more backwards end early; or your
            own function from a parameter's name to its block's.
        step_size: a >= 0 of the probabilities' update, in units of 1 / (squared gradient norm); 1e-3 in the paper.
        p_min: p_min in (0, s], smallest probability; 1e-3 in the paper.
        common: ``seed``, ``same_dropout`` and others of :class:`steppe.SharpnessAware`.

    Cost: 2 passes, whose backwards compute s of the weights' gradients; buffers of s of the parameters' size. One copy
    of L numbers to the host per step, begun after the first pass and waited for after the optimizer's step.

    ``torch.compile`` compiles a model again for every new set of drawn tensors, and gives up after a few: with
    level="block", compile each block by itself instead. DistributedDataParallel needs find_unused_parameters=True;
    FSDP2 and ``ascend()`` are refused. Activation checkpointing must be the non-reentrant one. A host that runs the
    first forward itself (Lightning) saves in the second pass only. Each tensor steps on a share s of the steps: the
    learning rate that suits SAM may be low (``steppe compare --lr-grid ... --tune-lr each`` tries several).

    Source: arXiv 2602.09395; that p_min bounds p from below is our reading, as it cancels in l.
    """
    select = Sparse(s, level, step_size, p_min)
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho), select=select, **common)


ROW = Row(
    name="sl_sam",
    title="SL-SAM",
    recipe=SLSAM,
    year=2026,
    paper="Huang, Yu, Ma et al., 2026, arXiv 2602.09395",
    passes="2 (backwards of s)",
    buffers="s",
    use="full fine-tuning where memory or the backward is short",
    good=({}, {"level": "block"}, {"s": 1.0}, {"s": 0.5, "step_size": 0.1}),
    bad=(*BAD_RHO, {"s": 0.0}, {"s": 1.5}, {"s": 0.0005}, {"level": "layer"}, {"step_size": -1}, {"p_min": 0}),
    rho_factor=0.2,
)
