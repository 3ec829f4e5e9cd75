"""Matplotlib figures as inline SVG that takes its colours from the page.

A figure is drawn once, in placeholder colours; each placeholder becomes a CSS variable, so the same drawing serves
the light page, the dark page and the printer. Fonts and ids are the page's own as well: text stays text, ids do not
repeat.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, FAINT, BASE, METHOD, PAPER = (f"#0{n}0{n}0{n}" for n in range(1, 7))
"""Placeholder colours: text, secondary text, rules, the base, a method, the background."""
_VARIABLES = {INK: "ink", MUTED: "muted", FAINT: "faint", BASE: "base", METHOD: "method", PAPER: "paper"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "steppe",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.unicode_minus": True,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.solid_capstyle": "round",
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of width × height CSS pixels with one pair of axes, in the style of the report."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
        yield figure, figure.add_subplot()


def inline(figure: Figure, key: str, title: str, description: str) -> Markup:
    """The figure as an `<svg>` element.

    Args:
        figure: what to write.
        key: prefix of all ids; unique on the page.
        title: the short text alternative.
        description: what the figure shows, in words, for those who cannot see it.
    """
    buffer = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    body = _own_ids(_inner(buffer.getvalue()), key)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    width, height = (round(72 * side) for side in figure.get_size_inches())
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-desc">{escape(description)}</desc>{body}</svg>'
    )


def _inner(text: str) -> str:
    """What is inside the outer element, without metadata, comments, fonts and needless digits."""
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<title>.*?</title>", "", text, flags=re.DOTALL)
    text = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: (bold |\d+ )?([\d.]+)px [^;\"]*", _font, text)
    text = re.sub(r" font-family: [^;\"]*;?| transform=\"rotate\(-0 [^\"]*\"", "", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), text)  # not what is written
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _font(found: re.Match[str]) -> str:
    weight = f"font-weight: {found[1].strip()}; " if found[1] else ""
    return f"{weight}font-size: {found[2]}px"


def _own_ids(body: str, key: str) -> str:
    """Ids with the prefix where something refers to them, none elsewhere."""
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", body)
    return re.sub(r'(url\(|href=")#', rf"\1#{key}-", body)
