"""Further settings to choose on validation data: `--tune alpha=0.1,0.3` or `--tune look_sam:k=5,10`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from steppe._command.choices import Choice, read_setting, settings_of
from steppe._command.rows import divided

_FORM = "setting=value,value or method:setting=value,value"

More = tuple[tuple[str, Any], ...]
"""Further settings of one try, sorted by name."""


def split(text: str) -> list[str]:
    """`alpha=0.1,0.3,look_sam:k=5,10` -> one piece for each setting, with its method where it has one before it."""
    pieces: list[str] = []
    for word in filter(None, re.split(r"[,;\s]+", text)):
        if "=" in word:
            method = pieces[-1].rpartition(":")[0] if pieces and ":" not in word else ""
            pieces.append(f"{method}:{word}" if method else word)
        elif pieces:
            pieces[-1] += f",{word}"
        else:
            raise ValueError(f"tune: {text!r} names no setting; write {_FORM}")
    return pieces


def asked(texts: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Method ("" for all) -> setting -> the values as typed."""
    found: dict[str, dict[str, list[str]]] = {}
    for piece in (each for text in texts for each in split(text)):
        name, rest = divided(piece) if ":" in piece.partition("=")[0] else ("", piece)
        key, _, values = (rest or "").partition("=")
        several = [value for value in values.split(",") if value]
        if not key or not several:
            raise ValueError(f"tune: {piece!r} has no values; write {_FORM}")
        if key in found.setdefault(name, {}):
            raise ValueError(f"tune: {key!r} is there twice{f' for {name}' if name else ''}; give each setting once")
        found[name][key] = several
    return found


def check(texts: Sequence[str], choices: Sequence[Choice]) -> None:
    """Refuse what no method of the comparison would listen to."""
    for name, settings in asked(texts).items():
        for key in settings:
            there = [choice for choice in choices if name in ("", choice.name)]
            if not there:
                raise ValueError(f"tune: {name!r} is not among the methods; add it to --methods or leave it out")
            if key in ("rho", "mu") and not name:
                raise ValueError(f"tune: {key} has a flag of its own, --{key}; or name the method, as sam:{key}=...")
            if fixed := next((each for each in there if name and key in each.settings), None):
                raise ValueError(f"tune: {key!r} is fixed in the method {fixed.text!r}; leave it out in one of them")
            if not any(_of(choice, texts, key) for choice in there):
                raise ValueError(f"tune: none of the methods has a setting {key!r} that is open; leave it out")
    for choice in choices:
        grid_of(choice, texts)


def _of(choice: Choice, texts: Sequence[str], key: str) -> list[str] | None:
    """What is to be tried for a setting of a method; its own word wins."""
    found = asked(texts)
    if key in choice.settings:
        return None
    if key in (own := found.get(choice.name, {})):
        return own[key]
    return found.get("", {}).get(key) if key in settings_of(choice.name) else None


def grid_of(choice: Choice, texts: Sequence[str]) -> dict[str, list[Any]]:
    """Setting -> the values to try for a method, each read as the method wants it."""
    keys = sorted({key for settings in asked(texts).values() for key in settings})
    found: Mapping[str, list[str] | None] = {key: _of(choice, texts, key) for key in keys}
    return {key: [read_setting(choice.name, key, text) for text in each] for key, each in found.items() if each}


def points(grid: Mapping[str, Sequence[Any]]) -> list[More]:
    """Every combination of further settings; the empty one where there are none."""
    return [tuple(zip(sorted(grid), each, strict=True)) for each in itertools.product(*(grid[k] for k in sorted(grid)))]
