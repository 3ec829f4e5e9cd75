"""Tables as all commands show them on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.table import Table


def table(headers: Iterable[Any], left: int = 1, ruled: bool = False, **column: Any) -> Table:
    """Bold headers, with a line below where `ruled`; the first columns to the `left` are names, the others figures."""
    made = Table(box=box.SIMPLE_HEAD if ruled else None, pad_edge=not ruled, header_style="bold")
    for place, header in enumerate(headers):
        made.add_column(header, justify="right" if place >= left else "left", **column)
    return made
