"""How long a training is: a method's ``total_steps``, found in one place, and whether the host or the user gave it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from steppe._parts import check_count


def lacking(
    recipe: Callable[..., Any], total_steps: int | Callable[[], Any], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``{"total_steps": total_steps}`` where ``recipe`` takes it, nobody has set it and there is an end, else nothing.

    Args:
        recipe: a method's, a partial of one, or a function of the user's own.
        total_steps: the optimizer steps of the whole training, or a function that finds them when they are needed.
        settings: further arguments that the recipe will be called with.
    """
    wanted = inspect.signature(recipe).parameters.get("total_steps")
    if wanted is None or wanted.default not in (None, wanted.empty):
        return {}
    if (settings or {}).get("total_steps") is not None:
        return {}
    length = total_steps() if callable(total_steps) else total_steps
    return {} if length == math.inf else {"total_steps": length}  # Lightning's max_epochs=-1: nobody knows the end


def of_this_length(
    recipe: Callable[..., Any], total_steps: int | Callable[[], Any], settings: Mapping[str, Any] | None = None
) -> Callable[[Any, Any], Any]:
    """``recipe`` as a function of (model, optimizer), for a host that knows its length.

    Where the host's length was taken, it belongs to the host: a checkpoint of a shorter or longer run is loaded without
    a word about it. A length of the user's own stays.
    """
    known = dict(settings or {})
    given = lacking(recipe, total_steps, known)

    def build(model: Any, optimizer: Any) -> Any:
        made = recipe(model, optimizer, **known | given)
        if given and hasattr(made, "hosts_length"):  # what is no method is refused by the host
            made.hosts_length = True
        return made

    return build


def check_length(schedule: str, total_steps: int | None) -> None:
    """Refuse a schedule over the whole training whose length nobody gave."""
    if total_steps is not None:
        check_count("total_steps", total_steps)
    elif schedule != "constant":
        raise ValueError(
            f"schedule={schedule!r} needs total_steps, the number of optimizer steps of the whole training; give it, "
            "or schedule='constant'"
        )
