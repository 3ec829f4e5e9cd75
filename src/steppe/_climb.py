"""The weights at w + eps and back again, one perturbation at a time; meanwhile nobody saves, loads or steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from steppe._algebra import as_real, cloned, without_graph
from steppe._backup import MANY, Rows, SavedWeights
from steppe._doors import Doors
from steppe._draft import Draft
from steppe._gradients import Gradients
from steppe._guards import Replay
from steppe._parameters import Parameters, bare
from steppe._perturbation import Perturbation, Rounding
from steppe._present import Present
from steppe._thin import thin_
from steppe._tree import overlaid
from steppe.ascent import Grads, Scale

_COMPLEX = Tensor.is_complex


class Climb:
    """Makes eps of a direction and adds it, and takes it away again, whatever happens in between.

    Attributes:
        perturbation: that is there; None: the weights are the user's.
    """

    def __init__(self, model: nn.Module, gradients: Gradients, present: Present) -> None:
        self._model, self._gradients, self._present = model, gradients, present
        self._parameters: Parameters = gradients.parameters
        self._doors = Doors(bare(model), self._parameters.optimizers)
        self._rounding = Rounding()
        self._rows: Rows | None = None
        self.perturbation: Perturbation | None = None

    @without_graph
    def up(
        self, direction: Grads, scale: Scale, norms: list[Tensor] | None, clean: Grads, replay: Replay | None,
        draft: Draft,
    ) -> Perturbation:  # fmt: skip
        """Move the weights to w + eps.

        Args:
            direction: which the ascent makes eps of; it is emptied unless it is ``clean``.
            scale: the loss scale that ``direction`` carries.
            norms: of the gradients in it that are perturbed along, where they are known.
            clean: the gradient at w that is kept meanwhile.
            replay: makes the pass there begin where the first began.
            draft: is told what the direction remembers.
        """
        self._gradients.drop_others()
        weights, rows, eps, joined = self._eps(direction, scale, norms, clean, draft)
        if clean is not direction:
            direction.clear()  # frees the buffer for the copy, or for the second pass
        now, sharded = self._present.now, self._parameters.sharded
        saved = SavedWeights(weights, now.backup, rows if now.backup == "device" else None)
        self.perturbation = there = Perturbation(self._model, weights, saved, clean, replay, sharded)
        try:
            self._doors.shut(self._parameters.entries)
            there.enter(eps, joined, self._rounding, now.rounding, now.measure, now.seed, now.step)
        except BaseException:
            self.close(broken=True)
            raise
        return there

    def _rows_of(self, weights: list[Tensor]) -> Rows | None:
        if len(weights) < MANY or self._parameters.sharded:
            return None
        if self._rows is None or not self._rows.fit(weights):
            self._rows = Rows(weights)
        return self._rows

    def _eps(
        self, direction: Grads, scale: Scale, norms: list[Tensor] | None, clean: Grads, draft: Draft
    ) -> tuple[list[Tensor], Rows | None, list[Tensor], Rows | None]:
        """The weights, their rows, eps, and those rows if it is joined in them."""
        now, moved = self._present.now, self._present.moved()
        names, weights, vector = moved.names, moved.params, list(direction.values())
        if list(direction) != names:
            names = [n for n in names if n in direction]
            weights, vector = {n: weights[n] for n in names}, [direction[n] for n in names]
        pairs = [n for n, w in weights.items() if w.is_complex()] if any(map(_COMPLEX, weights.values())) else ()
        if pairs:
            weights = {n: as_real(w) for n, w in weights.items()}
        ascent, there, keep = now.ascent, list(weights.values()), clean is direction
        rows, budget = self._rows_of(there), ascent.budget(now.step)
        if rows is not None and moved.alike and self._present.joins and now.rounding == "nearest":
            return there, rows, ascent.along(rows.joined(vector, keep), moved.radii[names[0]], scale, budget), rows
        if keep:  # the ascent writes on what it is handed
            vector = cloned(vector)
        handed = dict(zip(names, vector, strict=True))
        rho, groups = {n: moved.radii[n] for n in names}, {n: moved.groups[n] for n in names}
        known = now.known("ascent")
        eps, memory = ascent.perturbation(weights, handed, rho, groups, known, scale, budget, pairs, norms)
        if ascent.beta != 1:
            thin_(eps.values(), now.ascent.beta, now.seed, now.step)
        if earlier := draft.memory.get("ascent"):  # of a piece that was about other parameters (another task's head)
            memory = overlaid(memory, earlier, self._parameters.owned.keys() - handed.keys())
        draft.remember("ascent", memory)
        return there, rows, list(eps.values()), None

    def close(self, broken: bool = False) -> None:
        """The perturbation is forgotten last: an interruption in here can be followed by another call."""
        if self.perturbation is not None:
            try:
                self.perturbation.leave(broken)
            finally:
                self._doors.open()
            self.perturbation = None

    @contextmanager
    def closing(self) -> Iterator[None]:
        """The weights may go :meth:`up` and are back at its end, also when Ctrl-C falls into the way back.

        A generator, which closes itself where the interrupt falls between the end of the block and its own first line;
        a class with ``__exit__`` would leave the weights where they are.
        """
        broken = True
        try:
            try:
                yield
                broken = False
            finally:
                self.close(broken)
        finally:
            self.close(broken)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has weights of its own."""
        return vars(self) | {"_rows": None}
