"""A text as bytes: each byte from those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from steppe._command.files import content
from steppe.compare.data import columns
from steppe.compare.data.examples import Task
from steppe.compare.data.ngrams import BYTES, Counts
from steppe.compare.data.windows import Windows, sizes

ENOUGH = 100_000
"""Bytes of validation and of test, at most, where nobody says which parts: they are told whole, again and again."""


@lru_cache(maxsize=1)
def task(name: str, place: str, context: int, parts: Sequence[float] | None, stride: int) -> Task:
    """The three parts of a text one after the other; every seed has the same.

    Args:
        name: of the task.
        place: a file of text.
        context: bytes of an example; the target of each byte is the next one.
        parts: shares, or numbers of bytes, of training, validation and test; None gives the last two a tenth each, and
            at most `ENOUGH`.
        stride: bytes between two training windows; those of validation and test follow one another.
    """
    columns.check(place)
    columns.text_of(Path(place).expanduser())
    series = torch.frombuffer(bytearray(content(Path(place).expanduser())), dtype=torch.uint8)
    made, start = [], 0
    large = len(series) // 10 > ENOUGH
    parts = parts or ((len(series) - 2 * ENOUGH, ENOUGH, ENOUGH) if large else (0.8, 0.1, 0.1))
    for part, size in zip(("training", "validation", "test"), sizes(parts, len(series), "bytes"), strict=True):
        if size < context + 1:
            raise ValueError(
                f"the {part} part has {size} bytes, fewer than a context of {context} and the byte after it; "
                "lower --context, give it more with --parts, or give a longer text"
            )
        step = stride if part == "training" else context
        made.append(Windows(series[start : start + size], context, 1, context, stride=step))
        start += size
    counts = torch.bincount(made[0].series.long(), minlength=BYTES) + 1
    scores = counts.log().float()

    def frequencies(x: Tensor) -> Tensor:
        return scores.to(x.device).expand(*x.shape, -1)

    metrics = ("bits_per_byte", "accuracy")
    train, val, test = made
    counted: Callable[[Tensor], Tensor] = Counts(train.series)
    rows = {"byte frequencies": frequencies, "5-gram counts": counted}
    return Task(name, train, val, test, BYTES, metrics=metrics, rows=rows)
