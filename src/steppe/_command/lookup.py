"""Names a user typed: the nearest known one, and `module:function` references."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown `name`: the nearest known one where one is near, otherwise all of them."""
    names = list(known)
    close = near(name, names)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(names)}"


def near(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that was meant by `name`: of which it is a word, or misspelled; None where none is near.

    A word that shares its middle only with another (`epochs`, `response`) is no misspelling of it.
    """
    typed = name.lower().replace("-", "_")
    plain = {each: each.lower().replace("-", "_") for each in names}
    holding = [each for each, known in plain.items() if typed in known.split("_")]
    if holding:
        return min(holding, key=len)
    alike = {each: (_ratio(typed, known), _ratio(name, each)) for each, known in plain.items()}
    close = [each for each, (ratio, _) in alike.items() if ratio >= (0.55 if plain[each][:1] == typed[:1] else 0.75)]
    return max(close, key=alike.__getitem__, default=None)


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def named_function(reference: str, what: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules of the current folder are found too.

    Args:
        reference: as typed by the user.
        what: "task" or "model", for the messages.
    """
    module_name, _, function_name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{what} {reference!r}: cannot import module {module_name!r} ({error})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        hint = nearest(function_name, functions) if functions else "the module has none"
        raise ValueError(f"{what} {reference!r}: module {module_name!r} has no function {function_name!r}; {hint}")
    return function
