"""BAR, balancedness-aware regularisation of LoRA: Li, Zhang, He, NeurIPS 2024, arXiv 2410.14802."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._wiring import refusing_unknown
from steppe.lora.bar import BAR
from steppe.methods._row import Row


@refusing_unknown
def NBAR(
    model: nn.Module,
    optimizer: Given,
    *,
    mu: float = 0.5,
    schedule: str = "linear",
    total_steps: int | None = None,
    pairs: Any = None,
    seed: int = 0,
) -> BAR:
    """The factor with the larger gradient grows by 1 + a, the other shrinks by 1 - a; a = alpha_t times the lr.

    For each pair (LoRA's A and B) after the backward and before the optimizer's step: SAM's implicit regularisation of
    the balancedness 1/2 (||x||^2 - ||y||^2), without its second pass. See :class:`steppe.BAR`.

    Args:
        model: holds the pairs: PEFT's LoRA layers, or others by ``pairs``.
        optimizer: any base optimizer; AdamW without weight decay in the paper.
        mu: alpha at the start; 0.2 to 2 in the paper.
        schedule: of alpha: "linear" or "cosine" to 0 over ``total_steps``, or "constant".
        total_steps: T, optimizer steps of the whole training; needed by all but "constant".
        pairs: which; LoRA's when None, else as :class:`steppe.BAR` takes them ("query_key", names, a list).
        seed: of the rounding of bf16 and fp16 factors.

    Cost: 1 pass, no buffer; two norms for each pair.

    Source: arXiv 2410.14802, Algorithm 2 (nBAR).
    """
    return BAR(model, optimizer, rule="nbar", mu=mu, schedule=schedule, total_steps=total_steps, pairs=pairs, seed=seed)


@refusing_unknown
def OBAR(
    model: nn.Module,
    optimizer: Given,
    *,
    mu: float = 0.5,
    schedule: str = "linear",
    total_steps: int | None = None,
    pairs: Any = None,
    seed: int = 0,
) -> BAR:
    """The larger factor shrinks by 1 - a, the smaller grows by 1 + a; a = alpha_t times the lr.

    For each pair after the backward and before the optimizer's step; see :class:`steppe.BAR`.

    Args:
        model: holds the pairs: PEFT's LoRA layers, or others by ``pairs``.
        optimizer: any base optimizer; AdamW without weight decay in the paper.
        mu: alpha at the start; 0.2 to 2 in the paper.
        schedule: of alpha: "linear" or "cosine" to 0 over ``total_steps``, or "constant".
        total_steps: T, optimizer steps of the whole training; needed by all but "constant".
        pairs: which; LoRA's when None, else as :class:`steppe.BAR` takes them ("query_key", names, a list).
        seed: of the rounding of bf16 and fp16 factors.

    Cost: 1 pass, no buffer; two norms for each pair.

    Source: arXiv 2410.14802, Algorithm 1 (oBAR).
    """
    return BAR(model, optimizer, rule="obar", mu=mu, schedule=schedule, total_steps=total_steps, pairs=pairs, seed=seed)


ROW = Row(
    name="nbar",
    title="nBAR",
    recipe=NBAR,
    year=2024,
    paper="Li, Zhang, He, NeurIPS 2024, arXiv 2410.14802",
    passes="1",
    buffers="0",
    use="LoRA: SAM's regularisation of the factors at the base's price",
    good=({"total_steps": 20}, {"schedule": "constant", "mu": 2.0}, {"schedule": "cosine", "total_steps": 5}),
    bad=(
        {},
        {"total_steps": 0},
        {"total_steps": 20, "mu": -1},
        {"total_steps": 20, "schedule": "step"},
        {"pairs": {"first.weight": "nowhere"}, "total_steps": 20},
        {"pairs": "query_key", "total_steps": 20},
    ),
    tunes="mu",
    lora=True,
)

ROW_OBAR = replace(
    ROW, name="obar", title="oBAR", recipe=OBAR, use="query-key pairs, and LoRA where the gradients are noisy"
)
