"""SAM: Foret et al., ICLR 2021, arXiv 2010.01412."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._look import with_samples
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def SAM(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.05,
    samples: int | float | None = None,
    cuda_graph: bool = False,
    **common: Any,
) -> SharpnessAware:
    """Sharpness-aware minimisation: eps = rho g / ||g||, d = g~ = grad L(w + eps).

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer; with AdamW this is what many tables call "AdaSAM" (see :func:`steppe.AdaSAM`).
        rho: rho, Euclidean radius over all perturbed parameters; 0.05 in the paper, 0.01 to 0.2 usual, >= 0.
        samples: ascend on the first ``samples`` of each batch only (cost 1 + samples/batch); None is the paper. A
            quarter of the batch is Bahri et al.'s (ACL 2022, arXiv 2110.08529, who credit Brock et al. 2021);
            :func:`steppe.KSAM` chooses the samples by their loss.
        cuda_graph: record the pass over these samples and replay it, on a GPU (:class:`steppe.Look`).
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes; one parameter-sized buffer while perturbed, none between steps.

    Source: arXiv 2010.01412, Algorithm 1.
    """
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho), **with_samples(samples, common, cuda_graph))


ROW = Row(
    name="sam",
    title="SAM",
    recipe=SAM,
    year=2021,
    paper="Foret, Kleiner, Mobahi, Neyshabur, ICLR 2021, arXiv 2010.01412",
    passes="2",
    buffers="1",
    use="the reference, at twice the cost",
    good=({}, {"rho": 0.2}, {"rho": 0}),
    bad=(*BAD_RHO, {"samples": 0}, {"samples": 1.5}),
)

ROW_ADAMW = Row(
    name="sam_adamw",
    title="SAM (AdamW)",
    recipe=SAM,
    year=2021,
    paper="Foret et al., ICLR 2021, arXiv 2010.01412, on AdamW; called AdaSAM in many tables",
    passes="2",
    buffers="1 (+2 of AdamW)",
    use="transformers and fine-tuning, where the base is AdamW",
    good=({}, {"rho": 0.01}),
    bad=BAD_RHO,
    optimizer=lambda params, lr=1e-3: torch.optim.AdamW(params, lr=lr, weight_decay=1e-2),
)
