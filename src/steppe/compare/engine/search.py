"""Where to try next: beyond the edge of what was tried, or between the best and its neighbour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from steppe.compare.engine.runs import Run

Number = float | int


def coordinates(run: Run) -> dict[str, Number]:
    """What is tried in a run, as far as it is a number above zero: value, lr, further settings by name, epochs."""
    found = {"value": run.value, "lr": run.lr, **dict(run.more)}
    found |= {} if run.epochs is None else {"epochs": run.epochs}
    return {
        name: each
        for name, each in found.items()
        if isinstance(each, int | float) and not isinstance(each, bool) and each > 0
    }


def at(run: Run, name: str, number: Number) -> Run:
    """The same run with one coordinate elsewhere; a whole number stays one, others have three digits."""
    whole = isinstance(coordinates(run)[name], int)
    number = max(1, round(number)) if whole else float(f"{number:.3g}")
    if name == "value":
        return replace(run, value=float(number))
    if name == "lr":
        return replace(run, lr=float(number))
    if name == "epochs" and run.epochs is not None:
        return replace(run, epochs=int(number))
    return replace(run, more=tuple((key, number if key == name else each) for key, each in run.more))


def along(tried: Sequence[Run], best: Run, name: str) -> list[Run]:
    """What was tried in one coordinate while all others were as in the best, in order."""
    there = (each for each in tried if name in coordinates(each) and name in coordinates(best))
    alike = (each for each in there if at(each, name, 1) == at(best, name, 1))
    return sorted(alike, key=lambda each: coordinates(each)[name])


def _lines(tried: Sequence[Run], best: Run) -> Iterator[tuple[str, list[Number]]]:
    """Each coordinate, with the numbers that were tried along it."""
    for name in coordinates(best):
        there = [coordinates(each)[name] for each in along(tried, best, name)]
        if len(there) > 1:
            yield name, there


def beyond(tried: Sequence[Run], best: Run, can: Callable[[Run], bool]) -> Run | None:
    """One step further where the best lies at an edge: as far again, by ratio, as its neighbour is from it."""
    for name, there in _lines(tried, best):
        here = coordinates(best)[name]
        beside = {there[-1]: there[-2], there[0]: there[1]}.get(here)
        further = None if beside is None else at(best, name, here * here / beside)
        if further is not None and further not in tried and can(further):
            return further
    return None


def between(tried: Sequence[Run], best: Run, rank: Mapping[Run, float]) -> Run | None:
    """Half-way, by ratio, from the best to the better one of its neighbours in the first coordinate with room there.

    What has no rank, how good it is, is not there.
    """
    for name, there in _lines(tried, best):
        place = there.index(coordinates(best)[name])
        numbers = *there[place + 1 : place + 2], *there[max(place - 1, 0) : place]
        beside = [at(best, name, number) for number in numbers]
        for each in sorted(beside, key=lambda run: -rank.get(run, -math.inf)):
            middle = at(best, name, math.sqrt(coordinates(best)[name] * coordinates(each)[name]))
            if middle not in tried:
                return middle
    return None
