"""One row per method: what drives the command line, the docs table and the contract tests."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.optim import Optimizer

from steppe.protocol import Method

Settings = Mapping[str, Any]
Made = TypeVar("Made", bound=Callable[..., Any])


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
        radii: what a comparison tries where none are given, before ``rho_factor``; SAM's but where few samples climb.
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
    radii: tuple[float, ...] = (0.05, 0.1, 0.2)
    rho_factor: float = 1.0
    optimizer: Callable[..., Optimizer] | None = None
    tunes: str = "rho"
    per_sample: bool = False
    lora: bool = False


BAD_RHO: tuple[Settings, ...] = ({"rho": -0.1}, {"rho": float("nan")}, {"rho": "big"})


def recipe(made: Made) -> Made:
    """A method's function, in which a part that it chooses by itself is refused in one sentence, not in Python's."""

    @functools.wraps(made)
    def checked(*arguments: Any, **settings: Any) -> Any:
        try:
            return made(*arguments, **settings)
        except TypeError as error:
            twice = re.search(r"multiple values for keyword argument '(\w+)'", str(error))
            if twice is None or (part := twice[1]) not in settings:
                raise
            raise TypeError(
                f"{part}={settings[part]!r} was given to {made.__name__}, which makes this part of its own settings; "
                f"expected these alone, or steppe.SharpnessAware(model, optimizer, {part}=..., ...) of parts of yours"
            ) from None

    return checked  # type: ignore[return-value]
