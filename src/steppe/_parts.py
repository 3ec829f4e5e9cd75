"""The base of all parts: frozen dataclasses that check themselves and can be written to a checkpoint.

A part is pure: tensors and an explicit ``memory`` go in, tensors and new memory come out. It holds settings only, so a
checkpoint stores it as a plain dict of its fields and :func:`decode` builds it again, to be compared.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch

Curve = Callable[[int], float]
Value = float | Curve
P = TypeVar("P", bound="Part")


class Part:
    """A setting-only building block. Subclasses are frozen dataclasses; their names must be unique."""

    known: ClassVar[dict[str, type[Part]]] = {}
    exchangeable: ClassVar[bool] = False  # True: only a value, so a resumed training may have another in its place
    steps: ClassVar[tuple[str, ...]] = ()  # the fields that count optimizer steps of the whole training

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class by name, so that a checkpoint can name it."""
        super().__init_subclass__(**kwargs)
        Part.known[cls.__name__] = cls


def moved(**homes: str) -> Callable[[type[P]], type[P]]:
    """Tell where settings of an earlier version live now, where one of them is given.

    Args:
        homes: of each: the call that takes it, with braces for its value.
    """

    def tell(kind: type[P]) -> type[P]:
        plain: Callable[..., None] = kind.__init__

        @functools.wraps(plain)
        def init(self: P, *arguments: Any, **settings: Any) -> None:
            for name in settings.keys() & homes.keys():
                now = homes[name].format(repr(settings[name]))
                raise TypeError(f"{name}={settings[name]!r} was given to {kind.__name__}; expected it in {now}")
            plain(self, *arguments, **settings)

        kind.__init__ = init  # type: ignore[assignment, method-assign]
        return kind

    return tell


def encode(value: Any) -> Any:
    """Turn a part into plain dicts, lists, numbers and strings; a user's own function is only named."""
    if isinstance(value, Part):
        fields = dataclasses.fields(value)  # type: ignore[arg-type]
        return {"part": type(value).__name__} | {f.name: encode(getattr(value, f.name)) for f in fields}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if callable(value):
        # A callable object or a partial has no name of its own; its repr would hold an address.
        return {"function": getattr(value, "__qualname__", type(value).__qualname__)}
    # numpy's float64 is a float too, but one that a checkpoint would not load.
    return float(value) if isinstance(value, float) else value


def decode(saved: Any, current: Any) -> Any:
    """Build a part from :func:`encode`'s output; functions are taken from ``current``, the object at hand."""
    if isinstance(saved, list):
        olds = current if isinstance(current, tuple) and len(current) == len(saved) else (None,) * len(saved)
        return tuple(decode(s, c) for s, c in zip(saved, olds, strict=True))
    if not isinstance(saved, dict):
        return saved
    if "dtype" in saved:
        return getattr(torch, saved["dtype"])
    if "function" in saved:
        return _same_function(saved["function"], current)
    cls = Part.known.get(saved.get("part", ""))
    if cls is None:
        raise ValueError(f"the state names the part {saved.get('part')!r}, which is not defined here: import it first")
    return cls(**{k: decode(v, getattr(current, k, None)) for k, v in saved.items() if k != "part"})


def _same_function(name: str, current: Any) -> Any:
    mine = encode(current).get("function", "") if callable(current) and not isinstance(current, Part) else ""
    if mine and (mine == name or "<lambda>" in mine + name):
        return current
    raise ValueError(
        f"the state was saved with your own function {name!r}, which a checkpoint cannot hold: "
        "construct with the same function, then load"
    )


def value_at(name: str, value: Value, t: int, low: float = 0.0, high: float = math.inf) -> float:
    """A number as it is; a curve at step ``t``, checked as it is read."""
    if not callable(value):
        return value
    now = value(t)
    check(f"{name}({t})", now, low, high)
    return now


def check_value(name: str, value: Any, low: float = -math.inf, high: float = math.inf, why: str = "") -> None:
    """Refuse anything but a curve or a finite number in [low, high]."""
    if not callable(value):
        check(name, value, low, high, why)


def check(name: str, value: Any, low: float = -math.inf, high: float = math.inf, why: str = "") -> None:
    """Refuse anything but a finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or math.isinf(value):
        raise ValueError(f"{name}={value!r} was given; expected {_range(low, high)}{why and '; ' + why}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse anything but a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} was given; expected a whole number of at least {least}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse anything but one of the named choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} was given; expected one of {', '.join(map(repr, choices))}")


def _range(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    return f"a finite number of at least {low:g}" if math.isinf(high) else f"a number from {low:g} to {high:g}"
