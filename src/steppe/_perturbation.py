"""The weights at w + eps, and the way back."""

from __future__ import annotations

from torch import Tensor, nn

from steppe._algebra import norm
from steppe._backup import Rows, SavedWeights
from steppe._guards import Replay, forget_derived
from steppe._rounding import add_, displacement, has_half, survived, warn_if_lost
from steppe._shards import gather_again
from steppe.ascent import Grads


class Rounding:
    """Whether eps is lost in weights of few bits: looked at once, when it is rounded to nearest."""

    watched = False

    def to_watch(self, weights: list[Tensor], mode: str) -> bool:
        """Whether it is to be looked at now; ``weights``: they, or copies of them."""
        now = mode == "nearest" and not self.watched and has_half(weights)
        self.watched = self.watched or now
        return now


class Perturbation:
    """Saved weights, state and masks, from :meth:`enter` to :meth:`leave`."""

    def __init__(
        self, model: nn.Module, weights: list[Tensor], saved: SavedWeights, clean: Grads, replay: Replay | None,
        sharded: bool,
    ) -> None:  # fmt: skip
        self._model, self._sharded, self._weights, self._replay = model, sharded, weights, replay
        self.clean, self._saved = clean, saved
        self.length: Tensor | None = None
        self.displacement: Tensor | None = None

    def enter(
        self, eps: list[Tensor], joined: Rows | None, rounding: Rounding, mode: str, measure: bool, seed: int, step: int
    ) -> None:
        """w becomes w + eps; ``joined``: the rows in which eps is given, to be rounded to nearest."""
        if self._replay is not None:
            self._replay.again()
        if joined is None:
            add_(self._weights, eps, mode, seed, step)
        else:
            joined.add_(eps, self._saved.of_rows)
        self._gather_again()
        forget_derived()  # an autocast around the whole step would go on with casts of the old weights
        first = rounding.to_watch(self._saved.few, mode)
        if measure or first:
            self.length = norm(eps)
            self.displacement = displacement(self._weights, self._saved.copies)
        if first:
            each = eps if joined is None else joined.in_order(eps)
            warn_if_lost(survived(self._weights, self._saved.copies, each))

    @property
    def copies(self) -> list[Tensor]:
        """The saved weights: their local pieces."""
        return self._saved.copies

    def leave(self, broken: bool = False) -> None:
        """Weights first, then what could fail; may be called again after an interruption."""
        self._saved.back()
        forget_derived()
        if self._replay is not None:
            self._replay.done()
        self._gather_again(broken)

    def _gather_again(self, broken: bool = False) -> None:
        if self._sharded:
            gather_again(self._model, broken)
