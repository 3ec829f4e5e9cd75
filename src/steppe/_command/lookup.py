"""Names a user typed: the nearest known one, and references such as `module:function` and `file.py:function`."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
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


def by_likeness(name: str, known: Iterable[str]) -> list[str]:
    """All of the known names, the nearest to `name` first; those that are as near in their order."""
    names = list(known)
    first, typed = near(name, names), name.lower()
    return sorted(names, key=lambda each: (each != first, -_ratio(typed, each.lower())))


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def named_function(reference: str, what: str) -> Callable[..., Any]:
    """The function or class that `module:function` or `file.py:function` names.

    Args:
        reference: as typed by the user; modules of the current folder are found too.
        what: "task", "model" or "method", for the messages.
    """
    place, _, name = reference.rpartition(":")
    try:
        module = _from_file(str(Path(place).expanduser().resolve())) if place.endswith(".py") else _from_name(place)
    except (Exception, SystemExit) as error:  # a file that parses a command line of its own
        why = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{what} {reference!r}: cannot import module {place!r} ({why})") from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        hint = nearest(name, functions) if functions else "the module has none"
        raise ValueError(f"{what} {reference!r}: module {place!r} has no function {name!r}; {hint}")
    return function


def _from_name(name: str) -> ModuleType:
    _look_in(os.getcwd())
    return importlib.import_module(name)


@functools.cache
def _from_file(path: str) -> ModuleType:
    """The module in a file, under a name that no other module has."""
    if not os.path.isfile(path):
        raise ImportError("there is no such file")
    return executed(f"{Path(path).stem}_{hashlib.blake2b(path.encode(), digest_size=4).hexdigest()}", path)


def executed(name: str, path: str) -> ModuleType:
    """The module in a file, kept under `name` as an import keeps it; what lies beside it can be imported by it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    _look_in(os.path.dirname(path))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _look_in(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def module_text(function: Callable[..., Any]) -> bytes:
    """What is in the file that a function comes from; nothing where there is none."""
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    return Path(file).read_bytes() if file else b""


def called(function: Callable[..., Any], *arguments: Any, what: str, form: str) -> Any:
    """What the user's function gives; its errors are told in a sentence.

    Args:
        function: as `named_function` found it.
        arguments: of the call.
        what: "model 'mine:net'", for the message.
        form: what the function should look like, for one that takes other arguments.

    Raises:
        ValueError: it raised; a ValueError of its own is taken for a sentence already.
    """
    try:
        return function(*arguments)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        wanted = f"; expected {form}" if isinstance(error, TypeError) else ""
        raise ValueError(f"{what} failed with {brief(error)}{wanted}") from error


def brief(error: BaseException) -> str:
    """An error of somebody else's code in one line, with its kind, as its message alone may say little."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__


def first_line(error: BaseException) -> str:
    """Of an error whose kind says nothing to a user, without its stop."""
    return str(error).strip().split("\n")[0].rstrip().rstrip(".") or type(error).__name__


def at_home(text: str) -> str:
    """What was typed, with the home folder in the place of a `~` that no shell has seen: `images:~/cats`."""
    kind, tilde, rest = text.partition("~")
    whole = tilde and rest[:1] in ("", "/", os.sep) and (not kind or kind[-1] in ":=")
    return kind + os.path.expanduser(tilde + rest) if whole else text
