"""What must be as it was: what a pass begins from and leaves, and what was computed from the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import parametrize

from steppe._randomness import Randomness
from steppe._state import State, Watch


class Replay:
    """Makes a second pass begin where the first began, and puts back what the first one left.

    Args:
        watch: knows the model's state.
        draws: where the generators stand, at the time that it is called.
        begun: False: the first pass is over and nothing was remembered before it; the state can only be held.
    """

    def __init__(self, watch: Watch, draws: Callable[[], Randomness], begun: bool = True) -> None:
        self._watch, self._unmarked = watch, not begun
        self._before = draws()
        self._start = watch.start() if begun else None
        self._after: Randomness | None = None
        self._left: State | None = None
        self.also: list[Any] = []  # states of modules outside the model

    def again(self, once: bool = True) -> None:
        """Begin the second pass; ``once``: there will be no third."""
        self._after, start = self._before.now(), self._start
        if start is not None:
            start.learn()
        self._left, self._start = self._watch.now(), None if once else start
        if start is not None:
            start.back(self._left)
        for module in self.also:
            module.again()
        self._before.set(self._after)

    def done(self) -> None:
        """End the second pass: generators and state are as they were after the first."""
        if self._after is not None:
            self._after.set()
        for module in self.also:
            module.done()
        if self._left is None:
            return
        moved = self._watch.moved_unmarked(self._left) if self._unmarked else []
        self._unmarked = False
        self._left.back()
        if moved:
            warnings.warn(
                f"ascend() without mark(): the second pass began from what the first left in {', '.join(moved[:3])}; "
                "call sharp.mark() before the first forward",
                stacklevel=2,
            )


def forget_derived() -> None:
    """Drop what was computed from the weights and kept: casts of an autocast, and parametrisations in ``cached()``."""
    torch.clear_autocast_cache()
    if parametrize._cache_enabled:
        parametrize._cache.clear()
