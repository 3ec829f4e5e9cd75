"""One row per method: what drives the command line, the docs table and the contract tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from steppe.protocol import Method

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A published method as the registry knows it.

    Attributes:
        name: key in commands and files. title: as the paper writes it.
        recipe: builds the :class:`steppe.Method` from (model, optimizer, ...).
        paper: authors, venue, arXiv number. year: of the paper.
        passes: forward+backward passes per optimizer step. buffers: parameter-sized buffers.
        use: one sentence on when to choose it.
        good: settings that must work. bad: settings that must be refused.
        rho_factor: multiply a grid made for SAM by this to get radii of comparable size.
        optimizer: builds the base that the method brings along from (params, lr=...), or None for any.
        per_sample: the loss function must return one loss per sample (reduction="none"), not their mean.
        tunes: the setting that a comparison chooses on validation data: "rho"; another where there is no radius.
        lora: it acts on LoRA's factors and needs a model with adapters.
    """

    name: str
    title: str
    recipe: Callable[..., Method]
    paper: str
    year: int
    passes: str
    buffers: str
    use: str
    good: tuple[Settings, ...] = ({},)
    bad: tuple[Settings, ...] = ()
    rho_factor: float = 1.0
    optimizer: Callable[..., Optimizer] | None = None
    tunes: str = "rho"
    per_sample: bool = False
    lora: bool = False


BAD_RHO: tuple[Settings, ...] = ({"rho": -0.1}, {"rho": float("nan")}, {"rho": "big"})
