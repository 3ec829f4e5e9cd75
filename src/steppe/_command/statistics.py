"""Intervals over seeds: a mean, a paired difference, the share of a gain.

Everything here takes plain numbers and returns plain numbers. Quantiles of Student's t come from scipy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
"""Coverage of every interval in a comparison."""

LEAST = 3
"""Values that have an interval: that of two, 12.7 standard errors to either side, says nothing in so many digits."""

_ROUNDING = 1e-9
"""Of equal differences of accuracies, as a share of them; an error may be small itself, so that no number will do."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with the half-width of its 95 % t-interval.

    Attributes:
        mean: the sample mean.
        ci95: half-width t(n−1) · s / √n; None below `LEAST` values.
        n: number of values.
        p: two-sided p-value of "the true mean is 0"; None where there is no interval.
    """

    mean: float
    ci95: float | None
    n: int
    p: float | None

    @property
    def above_zero(self) -> bool:
        """True when the whole interval lies above 0."""
        return self.ci95 is not None and self.mean - self.ci95 > 0


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % t-interval of independent values, without interval below `LEAST`; None when there are none."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n < LEAST:
        return Estimate(mean, None, n, None)
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return Estimate(mean, _t_quantile(n) * error, n, _p_value(mean, error, n))


def as_json(found: Estimate | None, **more: Any) -> dict[str, Any] | None:
    """An estimate as a summary has it."""
    return None if found is None else {"mean": found.mean, "ci95": found.ci95, "n": found.n} | more


def difference(values: Sequence[float]) -> Estimate | None:
    """The estimate of differences between accuracies; equal ones other than 0 have no interval.

    Accuracies are counts, so that a few seeds may well differ by the same; that tells nothing of their spread.
    """
    found = estimate(values)
    if found is None or found.n < LEAST or max(values) - min(values) > _ROUNDING * max(map(abs, values)):
        return found
    if found.mean == 0:
        return found
    return Estimate(found.mean, None, found.n, None)


def paired(left: Mapping[int, float], right: Mapping[int, float]) -> list[float]:
    """Differences left − right over the seeds that both have, in the order of the seeds."""
    return [left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())]


def holm(p_values: Mapping[str, float]) -> set[str]:
    """Names that stay clear of zero when all are tested together (Holm's step-down procedure).

    The chance that any name is returned by luck alone is at most 1 - LEVEL, however many are tested.
    """
    clear: set[str] = set()
    ordered = sorted(p_values.items(), key=lambda item: (item[1], item[0]))
    for place, (name, p) in enumerate(ordered):
        if p > (1 - LEVEL) / (len(ordered) - place):
            break
        clear.add(name)
    return clear


def share(part: Sequence[float], whole: Sequence[float]) -> tuple[float, float, float] | None:
    """mean(part) / mean(whole) with Fieller's 95 % interval, for values paired by seed.

    The bounds solve (b² − t²·s_bb) θ² − 2 (ab − t²·s_ab) θ + (a² − t²·s_aa) = 0 with a, b the means and s the
    (co)variances of the means. They are finite exactly when the interval of mean(whole) excludes 0.

    Returns:
        (share, low, high), or None when mean(whole) is not clear of zero: a share of nothing means nothing.
    """
    reference = difference(whole)
    if reference is None or not reference.above_zero or len(part) != len(whole):
        return None
    a, b = float(np.mean(part)), reference.mean
    (s_aa, s_ab), (_, s_bb) = np.cov(part, whole) / len(whole)
    t2 = _t_quantile(len(whole)) ** 2
    lead, half, last = b * b - t2 * s_bb, a * b - t2 * s_ab, a * a - t2 * s_aa
    root = math.sqrt(max(half * half - lead * last, 0.0))
    return a / b, float((half - root) / lead), float((half + root) / lead)


def values_to_tell(found: Estimate, tests: int = 1, most: int = 100) -> tuple[int, int, int]:
    """How many values would tell a mean of this size from 0: about, at least and at most.

    Args:
        found: the estimate; the range is that of its deviation, which few values say little of (80 % of the time).
        tests: how many are tested together; the largest is clear if it is so at the `tests`-th part of the level.
        most: beyond which the answer is one more.
    """
    from scipy import stats

    free, size = found.n - 1, abs(found.mean)
    deviation = (found.ci95 or 0.0) * math.sqrt(found.n) / _t_quantile(found.n)
    spread = (1.0, *(math.sqrt(free / stats.chi2.ppf(share, free)) for share in (0.9, 0.1)))

    def takes(deviation: float) -> int:
        counts = range(LEAST, most + 1)
        return next((m for m in counts if _t_quantile(m, tests) * deviation / math.sqrt(m) <= size), most + 1)

    about, low, high = (takes(deviation * each) for each in spread)
    return about, low, high


def _t_quantile(n: int, tests: int = 1) -> float:
    from scipy import stats  # here: it takes most of a second, and a command's first words need none

    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / tests, n - 1))


def _p_value(mean: float, error: float, n: int) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    from scipy import stats

    return float(2 * stats.t.sf(abs(mean) / error, n - 1))
