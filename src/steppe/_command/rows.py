"""The row of a method by its name: a published one, `recommended`, or a recipe of the user's own."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

from steppe import recommended
from steppe._command.lookup import module_text, named_function
from steppe.methods import METHODS, Row, unknown

RECOMMENDED = Row(
    "recommended", "Recommended", recommended, "SAM on few samples (Bahri, Mobahi, Tay), arXiv 2110.08529", 2022,
    "1 + p samples/batch", "1", "the default to begin with, in any loop that has the batch at hand",
    radii=(0.2, 0.4, 0.8),
)  # fmt: skip

_TUNED = ("rho", "mu", "sigma")


def is_own(name: str) -> bool:
    """Whether `name` is a user's `module:function` or `file.py:function`, not the name of a method."""
    return ":" in name


def divided(text: str) -> tuple[str, str | None]:
    """`look_sam:k=5` -> its name and its settings; `mymodule:MySAM:k=5` the same. None: no settings are begun."""
    name, colon, rest = text.strip().partition(":")
    second, more, settings = rest.partition(":")
    if name not in METHODS and name != RECOMMENDED.name and colon and second.strip() and "=" not in second:
        name, colon, rest = f"{name}:{second.strip()}", more, settings
    return name, rest if colon else None


def row(name: str) -> Row:
    """The row of a method."""
    if is_own(name):
        return _own(name)
    if name not in METHODS and name != RECOMMENDED.name:
        raise ValueError(unknown(name, [RECOMMENDED.name, *METHODS]))
    return METHODS.get(name, RECOMMENDED)


@functools.cache
def _own(reference: str) -> Row:
    recipe = named_function(reference, "method")
    every = inspect.signature(recipe).parameters.items()
    names = [name for name, each in every if each.kind is not each.VAR_KEYWORD]
    if len(names) < 2:
        raise ValueError(
            f"method {reference!r} takes ({', '.join(names)}); expected a function or a class of "
            "(model, optimizer, **settings) that gives a steppe.Method"
        )
    tunes = next((name for name in _TUNED if name in names[2:]), "")
    title = str(getattr(recipe, "__name__", reference.rpartition(":")[2]))
    return Row(reference, title, recipe, "", 0, "", "", "", tunes=tunes)


def accepts(recipe: Callable[..., Any], name: str) -> bool:
    """Whether a recipe can be given an argument of that name."""
    parameters = inspect.signature(recipe).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def fingerprint(name: str) -> str:
    """What decides what an own recipe does: the text of its file, as hex digits; empty for a method of steppe's."""
    return _text(name) if is_own(name) else ""


@functools.cache
def _text(reference: str) -> str:
    return hashlib.blake2b(module_text(named_function(reference, "method")), digest_size=8).hexdigest()
