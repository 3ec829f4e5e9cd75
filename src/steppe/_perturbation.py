"""The weights at w + eps, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from steppe._algebra import norm
from steppe._guards import Replay, SavedWeights, forget_derived
from steppe._rounding import add_, displacement, has_half, survived, warn_if_lost
from steppe._shards import gather_again
from steppe.ascent import Grads


@dataclass
class Rounding:
    """How eps is added, and whether its length is measured; a warning for few bits is given once."""

    mode: str
    measure: bool
    warned: bool = False


class Perturbation:
    """Saved weights, state, masks and closed doors, from :meth:`enter` to :meth:`leave`."""

    def __init__(
        self, model: nn.Module, weights: Grads, clean: Grads, replay: Replay | None, backup: str,
        sharded: bool,
    ) -> None:  # fmt: skip
        self._model, self._sharded, self._weights, self._replay = model, sharded, weights, replay
        self.clean = clean
        self._saved = SavedWeights(weights.values(), backup)
        self.length: Tensor | None = None
        self.displacement: Tensor | None = None

    def enter(self, eps: Grads, rounding: Rounding, seed: int, step: int) -> None:
        """w becomes w + eps."""
        if self._replay is not None:
            self._replay.again()
        add_(self._weights.values(), eps.values(), rounding.mode, seed, step)
        self._gather_again()
        forget_derived()  # an autocast around the whole step would go on with casts of the old weights
        watch = rounding.mode == "nearest" and not rounding.warned and has_half(self._weights.values())
        if rounding.measure or watch:
            self.length = norm(list(eps.values()))
            self.displacement = displacement(self._weights.values(), self._saved.copies)
        if watch:
            rounding.warned = True
            warn_if_lost(survived(self._weights.values(), self._saved.copies, eps.values()))

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
