"""Bi-LoRA, a second pair of factors that climbs: Liu et al., ICLR 2026, arXiv 2508.19564."""

from __future__ import annotations

from steppe.lora.bi import BiLoRA
from steppe.methods._row import BAD_RHO, Row

ROW = Row(
    name="bi_lora",
    title="Bi-LoRA",
    recipe=BiLoRA,
    paper="Liu et al., ICLR 2026, arXiv 2508.19564",
    year=2026,
    passes="1",
    buffers="LoRA's factors once more, kept (three times with Adam)",
    use="LoRA: SAM's perturbation of the full weights in one pass, of quantised bases too",
    good=({}, {"rule": "sgd", "lr": 0.5, "rho": 0.5}, {"rank": 1}),
    bad=(*BAD_RHO, {"lr": -1.0}, {"rank": 0}, {"rule": "adamw"}),
    lora=True,
)
