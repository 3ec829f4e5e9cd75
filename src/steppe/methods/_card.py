"""A method's card, from its row and the docstring of its recipe."""

from __future__ import annotations

import inspect
import re

from steppe.methods._row import Row


def write_card(row: Row) -> str:
    """The card in Markdown, arguments as a list, arXiv numbers as links."""
    facts = {"Paper": row.paper, "Passes per step": row.passes, "Parameter-sized buffers": row.buffers, "Use": row.use}
    lines = "\n".join(f"- **{key}:** {value}" for key, value in facts.items() if value)
    ours = "steppe." if row.recipe.__module__.startswith("steppe.") else ""
    call = f"```python\n{ours}{row.recipe.__name__}{_call(row)}\n```"
    text = f"# {row.title} (`{row.name}`)\n\n{lines}\n\n{call}\n\n{_as_markdown(inspect.getdoc(row.recipe) or '')}\n"
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _call(row: Row) -> str:
    parameters = list(inspect.signature(row.recipe).parameters.values())[2:]
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in named]
    return f"(model, optimizer, {', '.join(shown)})"


def _as_markdown(doc: str) -> str:
    """A Google-style docstring with its blocks as lists, so that a renderer keeps one argument to a line."""
    doc = doc.replace("``", "`")
    doc = re.sub(r":(?:func|class|meth):`([\w.]+)`", r"`\1`", doc)
    doc = re.sub(r"^(Args|Raises):$", r"**\1**\n", doc, flags=re.M)
    doc = re.sub(r"^    (\w+(?:, \w+)*): ", r"- `\1`: ", doc, flags=re.M)
    doc = re.sub(r"^        (?=\S)", "  ", doc, flags=re.M)
    return re.sub(r"^(Cost|Source):", r"**\1:**", doc, flags=re.M)
