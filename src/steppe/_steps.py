"""Did the optimizer really step? One answer for every method that asks."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from steppe._algebra import norm
from steppe._compiled import untraced
from steppe._frames import running
from steppe._optimizers import Optimizers, Stepper


class Listener(Protocol):
    """Who hears of steps."""

    @property
    def _awaits_step(self) -> bool:
        """Whether it made a gradient for the step to come, which then is real at a learning rate of zero too."""

    def _before_step(self, which: int, args: Any, kwargs: dict[str, Any]) -> Any:
        """Optimizer number ``which`` is about to step; what is returned replaces its arguments (as torch's hooks)."""

    def _after_step(self, which: int, skipped: Tensor | bool) -> None:
        """Its step is done; ``skipped``: whether it was none (a tensor: on the device, nonzero for yes)."""


class Steps:
    """Hears the real steps of one optimizer or several, and puts them into rounds.

    A round is what belongs to one step of the method: each of the optimizers once, in any order, from
    :meth:`begin` (new gradients) on. It ends when all have stepped, when one of them steps again, or at the next
    ``begin``; so a round in which some did not step (a loss scaler skipped them) counts once too. Not a step: a call
    that a wrapper does not pass on, one that raised, torch's checkpoint module stepping with zero gradients at lr = 0
    to make an optimizer's state, and what a fused optimizer under a loss scaler skips by itself, which is handed on.

    Args:
        listener: who is told. optimizers: whose steps. keep: the optimizers keep the listener alive.
    """

    def __init__(self, listener: Listener, optimizers: Optimizers, keep: bool = False) -> None:
        self._taken: set[int] = set()
        self._count = len(optimizers.steppers)
        # Weak, so that an object that is no longer used neither lives on in the optimizer nor counts its steps.
        self.who: Callable[[], Any] = (lambda: listener) if keep else weakref.ref(listener)
        self._handles: list[RemovableHandle] = []
        self._before: list[tuple[Any, int]] = []  # the hooks ahead of each optimizer's steps, and which one is ours
        for which, stepper in enumerate(optimizers.steppers):
            ear = _Ear(self, which, stepper)
            self._handles.append(first := stepper.optimizer.register_step_pre_hook(ear.before))
            self._handles.append(after := stepper.optimizer.register_step_post_hook(ear.after))
            # Ours is the rest of the step (WSAM's correction): an average or a clamp in a hook sees it done.
            behind: Any = stepper.optimizer._optimizer_step_post_hooks
            behind.move_to_end(after.id, last=False)
            self._before.append((stepper.optimizer._optimizer_step_pre_hooks, first.id))

    def begin(self) -> bool:
        """New gradients: what steps from now on is another round; whether the round before had begun to step.

        A hook that somebody has added since, one that clips, runs ahead of ours, which reads what the step will take.
        """
        for hooks, mine in self._before:
            if next(reversed(hooks), mine) != mine and mine in hooks:
                hooks.move_to_end(mine)
        if not self._taken:
            return False
        self._taken = set()
        return True

    def comes_again(self, which: int) -> bool:
        """Whether this optimizer has stepped in the present round already."""
        return which in self._taken

    def under_way(self, which: int) -> bool:
        """Whether this optimizer is about to step in a round that others have begun, which is counted already."""
        return bool(self._taken) and which not in self._taken

    def stepped(self, which: int) -> tuple[bool, bool]:
        """Note a real step; whether it was the first of its round, and whether it was the last."""
        if which in self._taken:
            self._taken = set()
        first = not self._taken
        self._taken.add(which)
        last = len(self._taken) == self._count
        if last:
            self._taken = set()
        return first, last

    def remove(self) -> None:
        """Hear nothing any more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._before = [], []


class _Ear:
    """The hooks of one optimizer, which torch runs twice where a class's step calls its parent's: heard once."""

    def __init__(self, steps: Steps, which: int, stepper: Stepper) -> None:
        self.steps, self._which, self._stepper = steps, which, stepper
        self._depth = 0
        self._frame: FrameType | None = None

    @untraced
    def before(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._depth and not running(self._frame):
            self._depth = 0  # an earlier step raised, and its post-hook never ran
        self._depth += 1
        listener = self.steps.who()
        if self._depth > 1 or listener is None:
            return None
        self._frame = sys._getframe(2)  # that of the step, which calls this through the one of `untraced`
        try:
            return listener._before_step(self._which, args, kwargs)
        except BaseException:
            self._depth, self._frame = 0, None
            raise

    @untraced
    def after(self, *_: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        listener = self.steps.who()
        if self._depth or listener is None:
            return
        self._frame, found = None, self._stepper.attribute("found_inf")
        if not listener._awaits_step and was_rehearsal(self._stepper.optimizer):
            found = True
        listener._after_step(self._which, False if found is None else found)


def listeners(optimizers: Optimizers, kind: type) -> list[Any]:
    """Objects of a class that hear these optimizers' steps."""
    hooks = (h for s in optimizers.steppers for h in s.optimizer._optimizer_step_post_hooks.values())
    bound = (getattr(h, "__self__", None) for h in hooks)
    found = dict.fromkeys(ear.steps.who() for ear in bound if isinstance(ear, _Ear))
    return [one for one in found if isinstance(one, kind)]


def was_rehearsal(optimizer: Optimizer) -> bool:
    """Whether torch's checkpoint module stepped with lr = 0 and zero gradients, to make the optimizer's state."""
    groups = optimizer.param_groups
    # It puts the number 0.0 or a tensor on the CPU in place of each rate: nothing else is worth waiting for.
    if any(not _is_zero(g.get("lr")) for g in groups):
        return False
    grads = [p.grad for g in groups for p in g["params"] if p.grad is not None]
    return not grads or not bool(norm(grads) > 0)


def _is_zero(rate: Any) -> bool:
    if isinstance(rate, Tensor) and rate.device.type != "cpu":
        return False
    return rate is not None and bool(rate == 0)
