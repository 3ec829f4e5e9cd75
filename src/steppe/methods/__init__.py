"""The published methods: one file per paper, one row per method."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from steppe.methods import (
    adasam,
    aesam,
    asam,
    bar,
    bi_lora,
    esam,
    flat_lora,
    fsam,
    gnp,
    grst,
    gsam,
    k_sam,
    late_sam,
    layer_sam,
    le_sam,
    look_layer_sam,
    look_sam,
    msam,
    muon_sam,
    rst,
    rwp,
    s2_sam,
    sam,
    sam_on,
    sl_sam,
    tail_sam,
    wsam,
)
from steppe.methods._card import write_card
from steppe.methods._row import Row

_ROWS = (
    sam.ROW, sam.ROW_ADAMW, asam.ROW, layer_sam.ROW, rst.ROW, grst.ROW, gnp.ROW, look_sam.ROW, look_layer_sam.ROW,
    adasam.ROW, gsam.ROW, fsam.ROW, wsam.ROW, aesam.ROW, sam_on.ROW, late_sam.ROW, tail_sam.ROW, le_sam.ROW, sl_sam.ROW,
    msam.ROW, s2_sam.ROW, rwp.ROW, rwp.ROW_ARWP, esam.ROW, k_sam.ROW, muon_sam.ROW, bar.ROW, bar.ROW_OBAR,
    flat_lora.ROW, bi_lora.ROW,
)  # fmt: skip
METHODS: dict[str, Row] = {row.name: row for row in _ROWS}

__all__ = ["METHODS", "Row", "card", "get"]


def get(name: str) -> Row:
    """The row of a method by its name.

    Raises:
        ValueError: there is no such method; the nearest name is offered.
    """
    if name in METHODS:
        return METHODS[name]
    raise ValueError(unknown(name, METHODS))


def unknown(name: str, known: Iterable[str]) -> str:
    """The sentence about a name that no method has, with the nearest of `known` and all of them."""
    names, sought = list(known), name.lower().replace("-", "_")
    kinds = [each for each in names if each in (f"n{sought}", f"o{sought}")]  # "bar" is two methods
    near = kinds or difflib.get_close_matches(sought, names, n=1, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"there is no method {name!r}; {hint}known are {', '.join(names)}"


def card(name: str) -> str:
    """The method's card in Markdown: paper, cost, equation and every argument, from its row and its recipe."""
    return write_card(get(name))
