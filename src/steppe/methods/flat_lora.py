"""Flat-LoRA, random perturbation of the merged weights: Li et al., ICML 2025, arXiv 2409.14396."""

from __future__ import annotations

from steppe.lora.flat import FlatLoRA
from steppe.methods._row import Row

ROW = Row(
    name="flat_lora",
    title="Flat-LoRA",
    recipe=FlatLoRA,
    paper="Li et al., ICML 2025, arXiv 2409.14396",
    year=2025,
    passes="1",
    buffers="0 (W + eps of one layer at a time)",
    use="LoRA: minima that are flat in the full weights, at one pass; needs plain base weights",
    good=({"total_steps": 20}, {"schedule": "constant", "sigma": 0.2}, {"total_steps": 5, "sigma": 0.0}),
    bad=({}, {"total_steps": 0}, {"total_steps": 20, "sigma": -1}, {"total_steps": 20, "schedule": "linear"}),
    tunes="sigma",
    lora=True,
)
