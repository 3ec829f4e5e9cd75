"""The published methods: one file per paper, one row per method."""

from __future__ import annotations

import difflib
import inspect

from steppe.methods import (
    adasam,
    aesam,
    asam,
    fsam,
    gnp,
    grst,
    gsam,
    late_sam,
    layer_sam,
    look_layer_sam,
    look_sam,
    rst,
    sam,
    sam_on,
    wsam,
)
from steppe.methods._row import Method

_ROWS = (
    sam.ROW, sam.ROW_ADAMW, asam.ROW, layer_sam.ROW, rst.ROW, grst.ROW, gnp.ROW, look_sam.ROW, look_layer_sam.ROW,
    adasam.ROW, gsam.ROW, fsam.ROW, wsam.ROW, aesam.ROW, sam_on.ROW, late_sam.ROW,
)  # fmt: skip
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}

__all__ = ["METHODS", "Method", "card", "get"]


def get(name: str) -> Method:
    """The row of a method by its name.

    Raises:
        ValueError: there is no such method; the nearest name is offered.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), METHODS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"there is no method {name!r}; {hint}known are {', '.join(METHODS)}")


def card(name: str) -> str:
    """The method's card in Markdown: paper, cost, equation and every argument, from its row and its recipe."""
    row = get(name)
    doc = inspect.getdoc(row.recipe) or ""
    facts = [
        ("Paper", row.paper),
        ("Passes per step", row.passes),
        ("Parameter-sized buffers", row.buffers),
        ("Use", row.use),
    ]
    table = "\n".join(f"- **{key}:** {value}" for key, value in facts)
    call = f"steppe.{row.recipe.__name__}{_call(row)}"
    return f"# {row.title} (`{row.name}`)\n\n{table}\n\n```python\n{call}\n```\n\n{doc}\n"


def _call(row: Method) -> str:
    parameters = list(inspect.signature(row.recipe).parameters.values())[2:]
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in named]
    return f"(model, optimizer, {', '.join(shown)})"
