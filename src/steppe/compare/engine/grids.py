"""Values to choose from on validation data, where none are named."""

from __future__ import annotations

from steppe.methods._row import Row

_MU = (0.5, 1.0, 0.2, 2.0, 0.1, 5.0)
_SIGMA = (0.05, 0.1, 0.15, 0.2, 0.02, 0.5)
"""The most usual values first: a grid of n takes n of them, so that every method has as many tuning runs."""


def grids(rho: list[float] | None, mu: list[float] | None) -> dict[str, list[float]]:
    """The values to choose from by the name of the setting; without radii that were given each method has its own."""
    count = len(rho or Row.radii)
    others = {"mu": mu or _usual(_MU, count), "sigma": _usual(_SIGMA, count)}
    return others | ({"rho": rho} if rho else {})


def _usual(values: tuple[float, ...], count: int) -> list[float]:
    if count <= len(values):
        return sorted(values[:count])
    low, high = min(values), max(values)
    return [round(low * (high / low) ** (i / (count - 1)), 4) for i in range(count)]
