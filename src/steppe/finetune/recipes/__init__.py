"""Recipes: the settings of published fine-tunings, one TOML file each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steppe._command.lookup import nearest
from steppe._command.settings import read_toml

_HERE = Path(__file__).parent
_ABOUT = ("title", "paper", "note", "published")


def names() -> list[str]:
    """The recipes that come along."""
    return sorted(path.stem for path in _HERE.glob("*.toml"))


def about(name: str) -> dict[str, Any]:
    """Title, paper, note and published figures of a recipe."""
    return {key: value for key, value in _read(name).items() if key in _ABOUT}


def recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe by its name, or in a TOML file of one's own by its path (it ends in .toml)."""
    return {key: value for key, value in _read(name).items() if key not in _ABOUT}


def _read(name: str) -> dict[str, Any]:
    if name.endswith(".toml"):
        return read_toml(Path(name), "--recipe")
    if name not in names():
        raise ValueError(f"there is no recipe {name!r}; {nearest(name, names())}")
    return read_toml(_HERE / f"{name}.toml", "--recipe")
