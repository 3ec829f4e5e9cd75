"""A step back from a cliff: beside a value that breaks trainings, the best of a few seeds may break others' too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from steppe.compare.analysis.lost import lost
from steppe.compare.engine.runs import Run
from steppe.compare.judge import of_records

Records = Sequence[Mapping[str, Any]]

POINTS, SHARE = 0.1, 0.25
"""So far below the best value's mean a training is broken: of a metric that is a share; of another, times that mean."""
SURE = 2.0
"""Standard errors of the difference to the next smaller value by which the best is clearly better, and stays."""


@dataclass(frozen=True)
class Cliff:
    """What was seen of one.

    Args:
        beside: the value at which trainings broke: the next above the best, or the best itself.
        broke: how many. of: so many.
        below: the next smaller value, where that is to be taken; None: there is none as good.
    """

    beside: Run
    broke: int
    of: int
    below: Run | None


def find(line: Sequence[Run], best: Run, found: Mapping[Run, Records]) -> Cliff | None:
    """The cliff that the best of the values tried lies at, if it does.

    Args:
        line: the values that were tried, in order.
        best: of these, by its mean.
        found: the records of each; what is not there did not finish.
    """
    line = [each for each in line if found.get(each)]
    place = line.index(best) if best in line and math.isfinite(fmean(_ranks(found[best]))) else len(line)
    for beside in line[place : place + 2]:
        if broke := broken(found[beside], found[best]):
            below = _as_good([found[each] for each in line[: place + 1]])
            return Cliff(beside, broke, len(found[beside]), line[place - 1] if below else None)
    return None


def broken(records: Records, best: Records) -> int:
    """How many trainings diverged, or ended far below the mean of the best value."""
    mean, judge = fmean(_ranks(best)), of_records(best)
    far = POINTS if judge.percent else SHARE * abs(mean)
    return sum(lost(each) is not None or mean - rank > far for each, rank in zip(records, _ranks(records), strict=True))


def _as_good(line: Sequence[Records]) -> bool:
    """Whether the last but one value, whole itself, is within the noise of the last, the best; one seed knows of none.

    The variance between seeds is the mean of that at each whole value up to the best, as two seeds alone tell little.
    """
    best = line[-1]
    whole = [best, *(each for each in line[:-1] if not broken(each, best))]
    spread = [variance(_ranks(each)) for each in whole if len(each) > 1]
    if len(line) < 2 or line[-2] not in whole or not spread:
        return False
    gap = fmean(_ranks(best)) - fmean(_ranks(line[-2]))
    return gap <= SURE * math.sqrt(2 * fmean(spread) / len(best))


def _ranks(records: Records) -> list[float]:
    judge = of_records(records)
    return [judge.rank(judge.of(each, "val")) for each in records]
