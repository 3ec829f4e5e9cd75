"""The machinery under SharpnessAware: decide, perturb, bring back, combine, and hear of the optimizer's real steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from steppe._algebra import cloned, norm
from steppe._draft import Draft, Moved
from steppe._guards import Doors, Replay, SavedWeights, Window, perturbed_message
from steppe._parameters import Parameters, aligned, bare
from steppe._rounding import add_, displacement, has_half, survived, warn_if_lost
from steppe._selection import Selection
from steppe._shards import gather_again
from steppe._sync import Averaging
from steppe._thin import thin_
from steppe.ahead import Ahead
from steppe.ascent import Ascent, Grads, Scale
from steppe.combine import Combine
from steppe.schedule import Schedule
from steppe.select import Select


class Climber:
    """State and steps that ``backward`` and the phases share; :class:`steppe.SharpnessAware` is the public face."""

    model: nn.Module
    optimizer: Optimizer
    ascent: Ascent
    schedule: Schedule
    combine: Combine
    seed: int
    same_dropout: bool
    rounding: str
    backup: str
    measure: bool
    averaging: Averaging

    def __init__(self, select: Select | None = None) -> None:
        self.step = 0
        self.memory: dict[str, Any] = {}
        self._parameters = Parameters(self.model, self.optimizer, self.ascent.subset)
        self._selection = Selection(select, self._parameters)
        self._draft = Draft()
        self._window: Window | None = None
        self._mark: Replay | None = None
        self._moved = Moved()
        self._scale: Scale = 1.0  # that the gradients at hand carry
        self._watch_rounding = self.rounding == "nearest"
        self._stepping = False  # within the optimizer's step, whose closure may call backward

    @property
    def select(self) -> Select | None:
        """The part that says which parameters a step is about; None: all of them."""
        return self._selection.select

    def _replay(self) -> Replay:
        return Replay(bare(self.model), self.same_dropout, self._devices())

    def _devices(self) -> set[torch.device]:
        return {e.param.device for e in self._parameters.entries}

    def _known_to_skip(self) -> bool:
        """Whether this step is known not to ascend before any gradient is there."""
        return not self.schedule.needs_gradient and not self._decide({})

    def _decide(self, grads: Grads) -> bool:
        if self._draft.decision is None:
            known = self.memory.get("schedule", {})
            self._draft.decision, memory = self.schedule.decide(
                self.step, self.seed, lambda: (norm(list(grads.values())) / self._scale) ** 2, known
            )
            self._draft.remember("schedule", memory)
        return self._draft.decision and self._has_radius()

    def _has_radius(self) -> bool:
        groups = [self.ascent.radius(self.step, g) for g in self.optimizer.param_groups]
        inside = (e for e in self._parameters.entries if self._parameters.perturbable(e))
        return any(e.group is not None and groups[e.group] > 0 for e in inside)  # most often the first says it

    def _radii(self) -> dict[str, float]:
        groups = [self.ascent.radius(self.step, g) for g in self.optimizer.param_groups]
        moved = [e for e in self._parameters.entries if self._parameters.perturbable(e)]
        return {e.name: groups[e.group] for e in moved if e.group is not None}

    def _keeps_clean(self) -> bool:
        return self.combine.needs_clean(self.step)

    @torch.no_grad()
    def _foreseen(self) -> Grads:
        """The direction that needs no gradient of this step; empty where nothing is known yet."""
        assert isinstance(self.ascent.direction, Ahead)
        radii = self._radii()
        params: Grads = {e.name: e.param for e in self._parameters.entries if e.name in radii and e.param.requires_grad}
        return self.ascent.direction.vector(params, self.optimizer, self.memory.get("ascent", {}), self.step)

    @torch.no_grad()
    def _keep_handed(self, scale: Scale = 1.0) -> None:
        """Let the direction remember the gradient that the optimizer's step is about to take."""
        if isinstance(self.ascent.direction, Ahead) and self._draft.decision is not None:
            inside = [e for e in self._parameters.entries if self._parameters.perturbable(e)]
            grads: Grads = {e.name: e.param.grad for e in inside if e.param.grad is not None}
            self._draft.remember("ascent", self.ascent.direction.after(grads, self.memory.get("ascent", {}), scale))

    @torch.no_grad()
    def _skip(self, grads: Grads) -> None:
        self._parameters.give(self.combine.skipped(self.step, grads, self.memory.get("combine", {})))
        self._parameters.give_others()

    @torch.no_grad()
    def _perturb(self, direction: Grads, clean: Grads, repeats: bool = True) -> None:
        self._parameters.drop_others()
        radii = self._radii()
        moved = {e.name: e for e in self._parameters.entries if e.name in radii and e.name in direction}
        # The ascent writes on what it is handed, so a gradient that is still needed is handed as a copy.
        handed = {k: direction[k] for k in moved}
        if clean is direction:
            handed = dict(zip(handed, cloned(list(handed.values())), strict=True))
        weights: Grads = {k: e.param for k, e in moved.items()}
        eps, memory = self.ascent.perturbation(
            weights, handed, {k: radii[k] for k in moved}, {k: e.group or 0 for k, e in moved.items()},
            self.memory.get("ascent", {}), self._scale,
        )  # fmt: skip
        thin_(eps.values(), self.ascent.beta, self.seed, self.step)
        self._draft.remember("ascent", memory)
        self._open(SavedWeights(weights.values(), self.backup), clean, repeats)
        add_(weights.values(), eps.values(), self.rounding, self.seed, self.step)
        self._gather_again()
        torch.clear_autocast_cache()  # an autocast around the whole step would go on with casts of the old weights
        self._measure(weights, eps)
        if clean is not direction:
            direction.clear()  # frees the buffer for the second pass

    def _measure(self, weights: Grads, eps: Grads) -> None:
        """||eps|| and how far the weights moved, when asked for; and once, to warn, for weights of few bits."""
        watch = self._watch_rounding and has_half(weights.values())
        self._moved = Moved()
        if not self.measure and not watch:
            return
        assert self._window is not None
        wanted, moved = norm(list(eps.values())), displacement(weights.values(), self._window.weights.copies)
        self._moved = Moved(wanted, moved)
        if watch:
            self._watch_rounding = False
            warn_if_lost(survived(weights.values(), self._window.weights.copies, eps.values()))

    def _open(self, weights: SavedWeights, clean: Grads, repeats: bool) -> None:
        replay, self._mark = (self._mark or self._replay()) if repeats else None, None
        self._window = Window(weights, replay, Doors(bare(self.model), self.optimizer), clean)
        self._window.doors.shut()
        if replay is not None:
            replay.again()

    def _close(self, broken: bool = False) -> None:
        """End the window, if one is open; ``broken``: a pass in it raised.

        The window is forgotten last: an interruption in here can be followed by another call.
        """
        if self._window is not None:
            self._window.close()
            self._gather_again(broken)
            self._window = None

    def _gather_again(self, broken: bool = False) -> None:
        if self._parameters.sharded:
            gather_again(self.model, broken)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """The window is closed at the end, also when Ctrl-C falls into the closing itself."""
        broken = True
        try:
            try:
                yield
                broken = False
            finally:
                self._close(broken)
        finally:
            self._close(broken)

    @torch.no_grad()
    def _finish(self, clean: Grads) -> None:
        """After the window: hand on what ``combine`` makes of the clean gradient and the perturbed one in ``.grad``."""
        perturbed = self._parameters.take()
        if clean:
            clean, perturbed = aligned(clean, perturbed)
        out = self.combine.ascended(self.step, clean, perturbed, self.memory.get("combine", {}))
        self._draft.keep(out)
        self._parameters.give(out.grads)
        self._parameters.give_others()

    def _before_step(self) -> None:
        self._refuse_while_perturbed("step the optimizer")
        self._stepping, scale = True, getattr(self.optimizer, "grad_scale", None)
        self._draft.close(self._parameters, scale)
        self._keep_handed(1.0 if scale is None else scale)

    def _after_step(self) -> None:
        self._stepping, draft, self._draft = False, self._draft, Draft()
        if _did_nothing(self.optimizer, draft):
            return
        # A host that hands the optimizer a closure made this draft during the step.
        draft.close(self._parameters, None)
        draft.correct(self._parameters)
        self.memory = self.memory | self._selection.learned(draft.memory, self.memory)
        self.step += 1

    def _refuse_while_perturbed(self, what: str) -> None:
        if self._window is not None:
            raise RuntimeError(perturbed_message(what))


def _did_nothing(optimizer: Optimizer, draft: Draft) -> bool:
    """Whether a step that was called was none.

    Fused optimizers under a GradScaler are called after an overflow too and skip by themselves (``found_inf``); torch's
    checkpoint module calls a step with lr = 0 and no backward before it, to make an optimizer build its state.
    """
    found = getattr(optimizer, "found_inf", None)
    if found is not None and bool(found):
        return True
    return draft.decision is None and all(float(g.get("lr", 1)) == 0 for g in optimizer.param_groups)
