"""`steppe methods`: the list of the methods, and the card of one."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from steppe._command.app import app, print_json, refusing
from steppe._command.choices import settings_of
from steppe._command.rows import RECOMMENDED, divided, row
from steppe._command.tables import table
from steppe.methods import METHODS
from steppe.methods._card import write_card


@app.command(short_help="List the methods, or show the card of one.")
def methods(
    name: Annotated[
        str | None, typer.Argument(help="A method (or my.py:MySAM), for its card.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods with passes, when to take them, and paper; or show the card of one."""
    with refusing():
        name = name and divided(name)[0]  # settings behind it are no matter
        row(name or "sam")
    if as_json:
        rows = [_row(each) for each in (RECOMMENDED.name, *METHODS)] if name is None else _row(name)
        print_json(rows)
    else:
        Console().print(_table() if name is None else Markdown(write_card(row(name))))


def _row(name: str) -> dict[str, Any]:
    method = row(name)
    keys = ("name", "title", "paper", "year", "passes", "buffers", "use")
    return {key: getattr(method, key) for key in keys} | {"settings": list(settings_of(name))}


def _table() -> Table:
    made = table(("name", "passes", "when", "paper"), left=4)
    made.columns[0].no_wrap = True
    for method in (RECOMMENDED, *METHODS.values()):
        made.add_row(method.name, method.passes, method.use, _short(method.paper, method.year))
    return made


def _short(paper: str, year: int) -> str:
    """First author, year and arXiv number: one line of a table; the card has the rest."""
    number = re.search(r"arXiv \d{4}\.\d{5}", paper)
    return " ".join([re.split(r",| et al", paper)[0], str(year), number[0] if number else ""])
