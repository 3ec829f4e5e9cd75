"""Examples that are windows of one long series: views of it, of which only what is taken is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from steppe.compare.data.examples import Split


@dataclass(frozen=True)
class Sequences(Split):
    """Sequences of labels, whose outputs (one score for each class at each place) are large."""

    chunk: ClassVar[int] = 64


@dataclass(frozen=True)
class Windows(Split):
    """Inputs and targets cut out of a series, the earliest first.

    Args:
        series: numbers (time, columns), or bytes (time,).
        length: rows of an input.
        ahead: rows from the start of an input to that of its target.
        target: rows of a target.
        columns: the first so many columns are targets; None takes all.
        stride: rows between the starts of two windows.
    """

    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    group: None = field(init=False, default=None)
    series: Tensor
    length: int
    ahead: int
    target: int
    columns: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        count = windows_in(len(self.series), self.length, self.ahead, self.target, self.stride)
        x = self.series.unfold(0, self.length, self.stride)[:count]
        goal = self.series if self.columns is None else self.series[:, : self.columns]
        y = goal[self.ahead :].unfold(0, self.target, self.stride)[:count]
        object.__setattr__(self, "x", x.movedim(-1, 1))
        object.__setattr__(self, "y", y.movedim(-1, 1))

    @property
    def chunk(self) -> int:  # type: ignore[override]
        """Windows per forward where a whole split goes through a model."""
        return Sequences.chunk if self.of_bytes else Split.chunk

    @property
    def of_bytes(self) -> bool:
        """Whether the series is bytes, which models take as whole numbers."""
        return self.series.dtype == torch.uint8

    def take(self, index: Tensor) -> Split:
        """The windows at `index`, copied."""
        if self.of_bytes:
            return Sequences(self.x[index].long(), self.y[index].long())
        return Split(self.x[index], self.y[index])

    def to(self, device: torch.device | str) -> Windows:
        """The same with the series on `device`, where windows are then cut out."""
        series = self.series.to(device)
        return Windows(series, self.length, self.ahead, self.target, self.columns, self.stride)

    def unsound(self) -> Tensor:
        """Which windows hold a value that is not finite; looked for in the series, once."""
        bad = ~self.series.isfinite()
        whole = max(self.length, self.ahead + self.target)
        bad = bad.any(1) if bad.dim() > 1 else bad
        return bad.unfold(0, whole, self.stride).any(1)


def windows_in(rows: int, length: int, ahead: int, target: int, stride: int) -> int:
    """How many windows a series of `rows` has; 0 where it is too short for one."""
    whole = max(length, ahead + target)
    return (rows - whole) // stride + 1 if rows >= whole else 0


def sizes(parts: Sequence[float], rows: int, what: str) -> tuple[int, int, int]:
    """Rows of the training, validation and test part, one after the other.

    Args:
        parts: three shares of the whole, or three numbers of rows; what they leave at the end is not used.
        rows: how many there are.
        what: what a row is called, in a sentence.
    """
    shown = ",".join(f"{part:g}" for part in parts)
    if all(part < 1 for part in parts):
        if sum(parts) > 1 + 1e-9:
            raise ValueError(f"parts={shown} are shares that add up to {sum(parts):g}; at most 1 can be given away")
        ends = [round(rows * sum(parts[:i])) for i in range(4)]
        return ends[1], ends[2] - ends[1], ends[3] - ends[2]
    if any(part < 1 or part != int(part) for part in parts):
        raise ValueError(f"parts={shown} are neither three shares below 1 nor three whole numbers of {what}")
    if sum(parts) > rows:
        raise ValueError(f"parts={shown} are {sum(parts):g} {what}, and there are {rows}; lower them")
    train, val, test = (int(part) for part in parts)
    return train, val, test
