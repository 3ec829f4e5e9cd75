"""Settings that lie in a method's parts: set on the method itself, nobody would read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_HOMES = {
    "rho": "ascent", "eta": "ascent", "sigma": "ascent", "samples": "look", "view": "look", "autocast": "look",
    "k": "schedule", "p": "schedule", "alpha": "combine", "gamma": "combine",
}  # fmt: skip
Kind = TypeVar("Kind", bound=type)


def settings_in_parts(cls: Kind) -> Kind:
    """Have a recipe's word for a setting refused as an attribute of the method, with the part that holds it."""
    for name, part in _HOMES.items():
        setattr(cls, name, property(None, _refusing(name, part)))
    return cls


def _refusing(name: str, part: str) -> Callable[[Any, Any], None]:
    def refuse(sharp: Any, value: Any) -> None:
        group = ", or a rho in the optimizer's groups" if name == "rho" else ""
        raise AttributeError(
            f"{name}={value!r} was set on the method, where nobody reads it; expected another part in sharp.{part}, "
            f"which is {getattr(sharp, part)!r}, such as one of dataclasses.replace{group}"
        )

    return refuse
