"""The weights at w + eps, and the way back."""

from __future__ import annotations

from torch import Tensor, nn

from steppe._algebra import norm
from steppe._guards import Replay, SavedWeights, forget_derived
from steppe._rounding import add_, displacement, has_half, survived, warn_if_lost
from steppe._shards import gather_again
from steppe.ascent import Grads


class Rounding:
    """Whether eps is lost in weights of few bits: looked at once, when it is rounded to nearest."""

    watched = False

    def watch(self, weights: list[Tensor], copies: list[Tensor], eps: list[Tensor], mode: str) -> None:
        """Warn if more than half of it is; called at w + eps."""
        if mode == "nearest" and not self.watched and has_half(weights):
            self.watched = True
            warn_if_lost(survived(weights, copies, eps))


class Perturbation:
    """Saved weights, state and masks, from :meth:`enter` to :meth:`leave`."""

    def __init__(
        self, model: nn.Module, weights: list[Tensor], clean: Grads, replay: Replay | None, backup: str, sharded: bool
    ) -> None:
        self._model, self._sharded, self._weights, self._replay = model, sharded, weights, replay
        self.clean = clean
        self._saved = SavedWeights(weights, backup)
        self.length: Tensor | None = None
        self.displacement: Tensor | None = None

    def enter(self, eps: list[Tensor], watch: Rounding, mode: str, measure: bool, seed: int, step: int) -> None:
        """w becomes w + eps."""
        if self._replay is not None:
            self._replay.again()
        add_(self._weights, eps, mode, seed, step)
        self._gather_again()
        forget_derived()  # an autocast around the whole step would go on with casts of the old weights
        if measure or (mode == "nearest" and not watch.watched and has_half(self._weights)):
            self.length = norm(eps)
            self.displacement = displacement(self._weights, self._saved.copies)
        watch.watch(self._weights, self._saved.copies, eps, mode)

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
