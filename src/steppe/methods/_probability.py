"""The seven schedules of RST: p(t) over T = total_steps, exactly as in the authors' code, and the draws from them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from steppe._length import check_length
from steppe._parts import Value, check, check_choice, check_count
from steppe.curves import Cosine, Linear, Piecewise
from steppe.schedule import Bernoulli, Schedule, Window

Make = Callable[[float, float, int], Value]

SCHEDULES: dict[str, Make] = {
    "constant": lambda p, p_end, steps: p,
    "piecewise1": lambda p, p_end, steps: Piecewise(0.0, 1.0, p * steps),
    "piecewise2": lambda p, p_end, steps: Piecewise(1.0, 0.0, p * steps),
    "piecewise3": lambda p, p_end, steps: Piecewise(p, 1 - p, steps / 2),
    "linear1": lambda p, p_end, steps: Linear(max(0.0, 2 * p - 1), min(1.0, 2 * p), steps),
    "linear2": lambda p, p_end, steps: Linear(p, 1 - p, steps),
    "trigonometric": lambda p, p_end, steps: Cosine(p, p_end, steps),
}


def probability(p: float, schedule: str, p_end: float | None, total_steps: int | None) -> Value:
    """p(t) as a number or a curve: one of :data:`SCHEDULES` of its parameter p and of T, which all but "constant" need.

    `p_end` is p1 of "trigonometric"; 1 - p when None.
    """
    check_choice("schedule", schedule, tuple(SCHEDULES))
    if callable(p):
        raise ValueError("p was given as a function; expected a number, or use steppe.Bernoulli(your_curve) as a part")
    check("p", p, 0.0, 1.0, "p is a probability")
    end = 1 - p if p_end is None else p_end
    check("p_end", end, 0.0, 1.0, "p_end is a probability")
    if p_end is not None and schedule != "trigonometric":
        raise ValueError(
            f"p_end={p_end!r} was given with schedule={schedule!r}; expected none, as only "
            "'trigonometric' has an end: leave it out"
        )
    check_length(schedule, total_steps)
    if p == end == 0.5 and schedule in ("piecewise3", "linear2", "trigonometric"):
        warnings.warn(
            f"schedule={schedule!r} from p = 0.5 to 1 - p is constant, the same as schedule='constant'; give another p"
            + (" or p_end" if schedule == "trigonometric" else ""),
            stacklevel=4,
        )
    return SCHEDULES[schedule](p, end, total_steps or 1)


def draws(p: Value, start_step: int) -> Schedule:
    """Bernoulli(p), silent before ``start_step``."""
    check_count("start_step", start_step, 0)
    return Bernoulli(p) & Window(start_step) if start_step else Bernoulli(p)
