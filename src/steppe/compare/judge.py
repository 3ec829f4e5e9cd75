"""The figure by which a comparison judges: its direction, and how it and its differences are written for a reader."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


def finite(value: Any) -> float | None:
    """The value as a float, or None when it is missing or not a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


_ROUNDING = 1e-6


@dataclass(frozen=True)
class Judge:
    """A metric as the analysis knows it; records carry it, so that a report can be made from them alone.

    Args:
        name: of the metric; a record holds its values as ``val_<name>`` and ``test_<name>``.
        title: what a reader calls it.
        higher: whether larger is better.
        percent: whether it is a share of one, told in per cent, and its differences in points. Differences of any other
            metric are told in per cent of the mean of what they are differences to.
    """

    name: str = "accuracy"
    title: str = "accuracy"
    higher: bool = True
    percent: bool = True

    @property
    def sign(self) -> int:
        """What a difference is multiplied by, so that above zero is better."""
        return 1 if self.higher else -1

    @property
    def scale(self) -> float:
        """What a figure is multiplied by for a reader."""
        return 100.0 if self.percent else 1.0

    @property
    def head(self) -> str:
        """The metric and its unit, as over a column."""
        return f"{self.title}, %" if self.percent else self.title

    def oversized(self, value: float) -> bool:
        """Whether a share of one is none, as it was given in per cent; of errors more than one is possible."""
        return self.percent and self.higher and math.isfinite(value) and value > 1 + _ROUNDING

    def as_dict(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self)

    def of(self, figures: Mapping[str, Any], part: str) -> float | None:
        """The finite value of the part ("val" or "test") in a record, None where there is none."""
        return finite(figures.get(f"{part}_{self.name}"))

    def better(self, value: float, than: float) -> bool:
        """Whether a value beats another; nothing beats what is no worse, and what is no number beats nothing."""
        return self.rank(value) > self.rank(than)

    def rank(self, value: float | None) -> float:
        """The value as a number of which larger is better; what is no number, or not there, comes last."""
        return -math.inf if value is None or not math.isfinite(value) else self.sign * value


def of_records(records: Iterable[Mapping[str, Any]]) -> Judge:
    """The judge that the records name; accuracy where none is named, as in those of 0.1.0."""
    found = {Judge(**record["metric"]) if record.get("metric") else Judge() for record in records}
    if len(found) > 1:
        names = ", ".join(sorted(each.name for each in found))
        raise ValueError(f"the runs are judged by different metrics ({names}); compare runs of one metric")
    return found.pop() if found else Judge()
