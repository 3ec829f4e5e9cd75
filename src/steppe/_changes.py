"""Settings of a saved state beside those of the object that loads it: another method, or the same with other numbers.

What a state is needed for is its position and memory. The settings that hold after a load are those of the object:
every part is a function of the step, the settings and its memory, so a number changed between two runs is exact from
the step on. Another kind of part or another word among its choices is another method, to which the memory says nothing.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from steppe._parts import Part

Change = tuple[str, Any, Any]
"""Name, value in the state, value here."""

_IN_THE_CALL = {"interval": "k"}  # the recipes' word for a field, where it is another one


def changes(name: str, saved: Any, now: Any, hosts_length: bool = False) -> Iterator[Change]:
    """What differs between a part of the state and the one here, each a setting that may be another one.

    Args:
        name: of the part.
        saved: from the state.
        now: of the object.
        hosts_length: numbers of steps come from whoever runs the training, and follow its new length without a word.

    Raises:
        ValueError: they are parts of different methods.
    """
    if isinstance(now, Part) and type(saved) is type(now):
        for field in dataclasses.fields(now):  # type: ignore[arg-type]
            if not (hosts_length and field.name in now.steps):
                before, here = getattr(saved, field.name), getattr(now, field.name)
                yield from changes(f"{name}.{field.name}", before, here, hosts_length)
    elif any(isinstance(part, Part) and not part.exchangeable for part in (saved, now)) or _words(saved, now):
        raise another_method(name, saved, now)
    elif saved != now:
        yield name, saved, now


def _words(saved: Any, now: Any) -> bool:
    return saved != now and isinstance(saved, str) and isinstance(now, str)


def another_method(name: str, saved: Any, now: Any) -> ValueError:
    """The refusal of a state that another method left."""
    return ValueError(
        f"the state is of another method: {name} is {saved!r} there and {now!r} here, so its memory says nothing here; "
        "build the method that was saved, then load"
    )


def plain_changes(saved: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> list[Change]:
    """The same for settings without parts."""
    return [(name, saved[name], now[name]) for name in names if saved[name] != now[name]]


def tell(found: Iterable[Change]) -> None:
    """One warning that names every setting which is not what it was."""
    shown = [f"{_called(name)} was {saved!r} and is {now!r}" for name, saved, now in found]
    if shown:
        warnings.warn(
            f"settings differ from those of the state: {'; '.join(shown)}. Those of this object hold from here on",
            stacklevel=4,
        )


def _called(name: str) -> str:
    word = _IN_THE_CALL.get(name.rpartition(".")[2])
    return name if word is None or name.endswith(word) else f"{name} ({word})"
