"""Axes to draw into."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def new_axes() -> Axes:
    """Axes of a figure of their own, without a window. Needs matplotlib (``steppe[study]``)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(5.0, 3.5), layout="constrained").add_subplot()
