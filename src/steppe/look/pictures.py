"""The pictures of a look: one file for each part, every model in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steppe._command.files import writing


def draw(found: Mapping[str, Mapping[str, Any]], plane: Any, folder: Path) -> list[Path]:
    """Write ``<part>.png`` for each part that was measured and has something to draw (a density, of a curvature).

    Args:
        found: model -> part -> what :mod:`steppe.diagnostics` found.
        plane: of the loss, or None.
        folder: to write to; it is there.

    Raises:
        DiskError: a file cannot be written.
    """
    seen = ((part, what) for each in found.values() for part, what in each.items())
    parts = list(dict.fromkeys(part for part, what in seen if getattr(what, "density", what) is not None))
    paths = [_together(part, found, folder / f"{part}.png") for part in parts]
    return paths if plane is None else [*paths, _save(plane.plot(), folder / "plane.png")]


def _together(part: str, found: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    axes = None
    for name, each in found.items():
        if part in each:
            axes = each[part].plot(axes, label=name)
    return _save(axes, path)


def _save(axes: Any, path: Path) -> Path:
    with writing(path, "make room or name another --out"):
        axes.figure.savefig(path, dpi=150)
    return path
