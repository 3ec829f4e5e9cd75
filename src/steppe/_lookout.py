"""What a training loop does beside the method that would make its numbers wrong without a word."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import compress
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from steppe._bound import held_by
from steppe._optimizers import Optimizers
from steppe._parameters import Parameters

_NOBODY = nullcontext()
_HOOKS = attrgetter("_post_accumulate_grad_hooks")

FIRST = 3
"""In so many backwards it is looked for other optimizers that the function of the loss steps."""

PATIENCE = 50
"""Gradients without any step after which a loop is told that nothing was heard."""


class Lookout:
    """Looks out for steps within a backward, for steps that are never heard, and for optimizers that are not known."""

    def __init__(self) -> None:
        self.within = False  # a backward of the method is under way
        self._looks, self._others = FIRST, None  # type: int, RemovableHandle | None
        self.hooked: list[Tensor] = []  # its parameters that a hook may move
        self._refusal: RemovableHandle | None = None
        self.waits = True  # no step was heard so far
        self._waiting = 0  # gradients since the beginning, until then
        self._strangers: dict[Tensor, tuple[str, weakref.ref[Tensor], int]] = {}
        self._known: Optimizers | None = None
        self._handle: RemovableHandle | None = None
        self._warned = False
        self._given_up = False  # whether the latest gradient but one was cleared, and no step by it was heard

    # Steps within a backward

    def begin(self, parameters: Parameters, function: Any = None) -> None:
        """The passes of one ``backward`` begin: until :meth:`end` no optimizer of these parameters may step.

        ``function``: of the loss, in which others may.
        """
        self.end()  # what an interrupt left
        self.within = True
        if self._looks > 0:
            self._looks -= 1
            there = [each for each in held_by(function) if isinstance(each, Optimizer)]
            self._others = register_optimizer_step_post_hook(self._warn_of(there)) if there else None
        hooks = list(map(_HOOKS, parameters.all))
        self.hooked = list(compress(parameters.all, hooks)) if any(hooks) else []
        self._refusal = _refuse_steps_of(self.hooked) if self.hooked else None

    def end(self) -> None:
        """They are over."""
        self.within = False
        if self._others is not None:
            self._others.remove()
            self._others = None
        if self._refusal is not None:
            self._refusal.remove()
            self.hooked, self._refusal = [], None

    def _warn_of(self, there: list[Optimizer]) -> Callable[..., None]:
        """Tells once of an optimizer that the function steps, which is called for each pass."""

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if self._others is not None and any(optimizer is one for one in there):
                self._others.remove()
                self._others, self._looks = None, 0
                warnings.warn(
                    f"{type(optimizer).__name__} steps within the function of the loss, which is called once for each "
                    "pass: where the method climbs it steps twice, the second time beside w + eps; expected it stepped "
                    "before: train the other network, then sharp.backward(loss_of)",
                    stacklevel=3,
                )

        return after

    def one_pass(self) -> AbstractContextManager[None]:
        """A pass: a hook that writes on its parameter by itself is seen when it is done."""
        return self._watched() if self.hooked else _NOBODY

    @contextmanager
    def _watched(self) -> Iterator[None]:
        before = [p._version for p in self.hooked]
        yield
        if any(p._version != version for p, version in zip(self.hooked, before, strict=True)):
            raise RuntimeError(steps_inside("a hook"))

    # Steps that are never heard

    def heard(self) -> None:
        """A step was heard."""
        self.waits = False
        if self._given_up:
            self._given_up, mine = False, self._known.params() if self._known is not None else set()
            self._strangers = {p: told for p, told in self._strangers.items() if p not in mine}

    def gradient(self, optimizers: Optimizers, given_up: bool) -> None:
        """A new gradient is made, where none was; ``given_up``: the latest is gone, and no step by it was heard."""
        self._given_up = self._given_up or given_up
        if not self.waits:
            return
        self._waiting += 1
        if self._waiting == PATIENCE:
            self.waits = False
            warnings.warn(
                f"{PATIENCE} gradients were made and no step of the {optimizers.name} given was heard, so every one of "
                "them was that of step 0; expected step() of the very optimizer (all of them, if there are several) "
                "that the method was built with",
                stacklevel=6,
            )

    # Optimizers that are not known

    def handed(self, parameters: Parameters) -> None:
        """Note the gradients that a backward leaves for parameters that no known optimizer steps, or has stepped."""
        if self._warned or not (parameters.rest or self._given_up):
            self._strangers = {}
            return
        self._known = parameters.optimizers
        noted = parameters.strangers() if not self._given_up else parameters.entries
        self._strangers = {
            e.param: (e.name, weakref.ref(e.param.grad), e.param.grad._version)
            for e in noted
            if e.param.grad is not None and e.param.grad.layout is torch.strided  # a sparse one could not be perturbed
        }
        if self._strangers and self._handle is None:
            self._handle = _after_any_step(self)

    def _after_any_step(self, optimizer: Optimizer) -> None:
        """Whether an unknown optimizer has stepped by the method's own gradient.

        By that very tensor, as it was or changed once (clipped): in a GAN the other network's gradients are left here
        too, and its optimizer steps others, made by a backward of its own.
        """
        if self._known is None or any(optimizer is one for s in self._known.steppers for one in s.layers):
            return
        params = [p for g in optimizer.param_groups for p in g["params"] if p in self._strangers]
        taken = [self._strangers[p][0] for p in params if self._is_ours(p)]
        if not taken:
            return
        self._warned, self._strangers = True, {}
        if self._handle is not None:
            self._handle.remove()
        shown = ", ".join(taken[:3]) + (", ..." if len(taken) > 3 else "")
        kind = type(optimizer).__name__
        if not self._known.params().isdisjoint(params):
            warnings.warn(
                f"{kind} steps {len(taken)} parameters ({shown}) by the gradient of a method that hears the steps of "
                f"the {self._known.name} that it was built with alone, so that its count stands still; expected the "
                "method built anew with the optimizer that steps, and new.load_state_dict(sharp.state_dict()) if it is "
                "to go on",
                stacklevel=4,
            )
            return
        warnings.warn(
            f"{kind} steps {len(taken)} parameters by the gradient of a method that does not know it, so they "
            f"({shown}) are left out of the perturbation; expected all of the model's optimizers in one list: "
            f"optimizer=[optimizer, {kind.lower()}], with perturb=False in the groups that are to be left out",
            stacklevel=4,
        )

    def _is_ours(self, param: Tensor) -> bool:
        _, ours, version = self._strangers[param]
        return param.grad is not None and param.grad is ours() and param.grad._version - version <= 1

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks out for itself."""
        return {"waits": self.waits, "_waiting": self._waiting, "_warned": self._warned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.__dict__.update(state)


def _after_any_step(lookout: Lookout) -> RemovableHandle:
    """Hear every optimizer's steps, as long as the lookout lives."""
    me = weakref.ref(lookout)

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if (it := me()) is not None and it._strangers:
            it._after_any_step(optimizer)

    handle = register_optimizer_step_post_hook(after)
    weakref.finalize(lookout, handle.remove)
    return handle


def _refuse_steps_of(params: list[Tensor]) -> RemovableHandle:
    """Refuse every optimizer's step of these, before it moves anything."""
    mine = set(params)

    def refuse(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if any(p in mine for g in optimizer.param_groups for p in g["params"]):
            raise RuntimeError(steps_inside(type(optimizer).__name__))

    return register_optimizer_step_pre_hook(refuse)


def steps_inside(who: str) -> str:
    """The sentence for an optimizer that steps in hooks of the backward."""
    return (
        f"{who} steps inside a backward (register_post_accumulate_grad_hook), so that the passes of a step would "
        "train one after the other; expected an optimizer that steps after the backward: take the hooks away, and call "
        "optimizer.step() yourself"
    )
