"""The present step: what it is made with, how far each parameter goes, and whether it ascends at all."""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import compress
from operator import attrgetter, is_
from typing import Any, NamedTuple

from torch import Tensor

from steppe._algebra import norm, without_graph
from steppe._draft import Draft
from steppe._gradients import Gradients
from steppe._parameters import Moved, Parameters
from steppe._sync import Averaging
from steppe._tree import beside
from steppe._wiring import check_passes
from steppe.ascent import Ascent, Grads, Scale
from steppe.combine import Combine, Replace
from steppe.schedule import Schedule
from steppe.select import Select
from steppe.views import Look

_TRAINED = attrgetter("requires_grad")
PARTS = 6
"""So many fields of :class:`Now` are parts."""


class Now(NamedTuple):
    """Parts, settings and position, as they are when the user calls: any of them may be exchanged between two calls.

    The parts come first, of which :class:`Present` knows what they are as long as they are the same objects.
    """

    ascent: Ascent
    look: Look | None
    schedule: Schedule
    combine: Combine
    hardest: float | None
    select: Select | None
    step: int
    seed: int
    memory: dict[str, Any]
    same_dropout: bool
    generators: Sequence[Any]
    rounding: str
    backup: str
    measure: bool

    def known(self, part: str) -> dict[str, Any]:
        """What a part remembers of the last real step."""
        found: dict[str, Any] = self.memory.get(part, {})
        return found


class Present:
    """What follows of it: radii, decision, and the direction that is known before any pass.

    Args:
        parameters: whose radii. averaging: whether ranks have directions of their own.

    Attributes:
        now: as it was handed to :meth:`begin`.
        ahead: whether the direction is known before any pass of the step. waits: whether the decision is not.
        plain: whether a step that skips is as without the method.
        joins: whether eps of tensors that are joined to one is that of each.
        reads_all: whether gradients of parameters that are not perturbed are reckoned with, and not only handed on.
    """

    now: Now
    ahead: bool
    waits: bool
    plain: bool
    joins: bool
    reads_all: bool

    def __init__(self, parameters: Parameters, averaging: Averaging) -> None:
        self.parameters, self._averaging = parameters, averaging
        self._parts: tuple[Any, ...] = (None,) * PARTS
        self._moved: Moved | None = None
        self._trained: list[Tensor] | None = None

    def begin(self, now: Now) -> None:
        """A call of the user's."""
        if not all(map(is_, parts := now[:PARTS], self._parts)):
            self._know(now)
            self._parts = parts
        self.now, self._moved, self._trained = now, None, None

    def _know(self, now: Now) -> None:
        direction, selects = now.ascent.direction, now.select is not None
        check_passes(direction, now.look, now.hardest)
        self.ahead, self.waits, self.joins = direction.ahead, now.schedule.needs_gradient, now.ascent.joins
        self.plain = not (self.ahead or self.waits or now.combine.reuses or selects)
        alone = isinstance(now.combine, Replace) and not self.waits
        self.reads_all = not alone or selects or self._averaging.puts_off

    def moved(self) -> Moved:
        """What the ascent may move and how far; a group's rho may be another at each call."""
        if self._moved is None:
            ascent, step = self.now.ascent, self.now.step
            groups = self.parameters.optimizers.asking
            radii = [ascent.radius(step, g) if g.get("perturb", True) else None for g in groups]
            self._moved = self.parameters.moved(radii)
        return self._moved

    def ascends(self, draft: Draft) -> bool | None:
        """Whether this step ascends; None: that waits for a gradient."""
        return None if self.waits else self.decide(draft, {}, 1.0)

    def decide(self, draft: Draft, grads: Grads, scale: Scale) -> bool:
        """The schedule's decision, and whether any radius is above zero."""
        return self.scheduled(draft, grads, scale) and self.moved().any

    def scheduled(self, draft: Draft, grads: Grads, scale: Scale) -> bool:
        """The schedule's decision, one for each step."""
        if draft.decision is None:
            now = self.now
            draft.decision, memory = now.schedule.decide(
                now.step, now.seed, lambda: (norm(list(grads.values())) / scale) ** 2, now.known("schedule")
            )
            if memory:
                draft.remember("schedule", memory)
        return draft.decision

    def moves(self, direction: Grads) -> bool:
        """Whether a direction has anything to perturb (ranks with directions of their own must agree on their passes).

        A loss that does not depend on what is perturbed has a gradient, and no perturbation.
        """
        return bool(direction) and (self._averaging.puts_off or not self.moved().radii.keys().isdisjoint(direction))

    @property
    def needs_clean(self) -> bool:
        """Whether the combination reads the gradient at the weights."""
        return self.now.combine.needs_clean(self.now.step)

    @without_graph
    def known_ahead(self) -> Grads:
        """The direction that needs no gradient of this step; empty where nothing is known yet."""
        direction, parameters, now = self.now.ascent.direction, self.parameters, self.now
        moved: Grads = self.moved().params
        if not all(map(_TRAINED, moved.values())):
            moved = {n: p for n, p in moved.items() if p.requires_grad}
        return direction.vector(moved, parameters.optimizers, now.known("ascent"), now.step, now.seed)

    @without_graph
    def after(self, gradients: Gradients, which: int, scale: Scale) -> dict[str, Any]:
        """What such a direction will remember of the gradient that optimizer number ``which`` is about to take."""
        direction, parameters, memory = self.now.ascent.direction, self.parameters, self.now.known("ascent")
        if not direction.follows:
            return {}
        inside = [e for e in parameters.entries if parameters.perturbable(e)]
        mine = [e for e in inside if parameters.owner(e) == which and e.param.grad is not None]
        later = direction.after(gradients.seen_by(which, mine), memory, scale)
        if parameters.count > 1:  # the others keep what their own steps left
            later = beside(later, memory, {e.name for e in inside if parameters.owner(e) != which})
        return later

    def trained(self, silent: Set[str]) -> list[Tensor]:
        """The parameters that a second pass sees elsewhere on purpose; all others are state.

        ``silent``: those without a gradient.
        """
        if silent:
            return [p for n, p in self.moved().params.items() if p.requires_grad and n not in silent]
        if self._trained is None or self.now.select is not None:  # which switches parameters off in between
            there = self.moved().tensors
            self._trained = there if all(map(_TRAINED, there)) else list(compress(there, map(_TRAINED, there)))
        return self._trained
