"""A recipe's ``samples`` as the look that it is."""

from __future__ import annotations

from typing import Any

from steppe.views import Look


def with_samples(samples: int | float | None, common: dict[str, Any], cuda_graph: bool = False) -> dict[str, Any]:
    """``common`` with a look at ``samples`` of each batch, recorded or not; None: as it is. Two looks are refused."""
    if samples is None:
        if cuda_graph:
            raise TypeError(f"cuda_graph={cuda_graph!r} was given without samples; expected how many the look is at")
        return common
    if common.get("look") is not None:
        raise TypeError(
            f"samples={samples!r} and look={common['look']!r} were given; expected all of the look in one: "
            f"look=steppe.Look(samples={samples!r}, ...)"
        )
    return common | {"look": Look(samples, cuda_graph=cuda_graph)}
