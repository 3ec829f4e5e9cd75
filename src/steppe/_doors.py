"""Refuses to save or load a model, any of its submodules or the optimizers, or to step a wrapper, while perturbed."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from steppe._optimizers import Optimizers


class Doors:
    """Hooks that are hung once and cost nothing in a step: a flag says whether they refuse.

    They hang on every module that holds a tensor of its own, so that a submodule's state is refused like the whole
    model's. They know this object weakly and go when it goes; what a copy or a pickle of the model takes along is a
    built-in function that does nothing, so that a model saved whole can be read where steppe is not installed.
    """

    def __init__(self, model: nn.Module, optimizers: Optimizers) -> None:
        self._model, self._optimizers = model, optimizers
        self.closed = False
        self._hung_for: Any = None
        self._handles: list[RemovableHandle] = []
        weakref.finalize(self, _remove, self._handles).atexit = False

    def shut(self, parameters: Any) -> None:
        """Refuse from now on.

        Args:
            parameters: the model's list of parameters; a new one tells of layers that were exchanged.
        """
        if self._hung_for is not parameters:
            self._hang()
            self._hung_for = parameters
        self.closed = True

    def open(self) -> None:
        """Allow it again."""
        self.closed = False

    def _hang(self) -> None:
        _remove(self._handles)
        for module in self._model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # torch hangs no such hooks there
            if module is self._model or module._parameters or module._buffers:
                self._handles.append(module.register_state_dict_pre_hook(_Refusal("save the model", self)))
                self._handles.append(module.register_load_state_dict_pre_hook(_Refusal("load the model", self)))
        self._handles += [register(_Refusal(what, self)) for register, what in self._optimizers.doors()]

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self._model, "optimizers": self._optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Refusal:
    """A hook that refuses while its doors are closed."""

    __slots__ = ("_doors", "_what")

    def __init__(self, what: str, doors: Doors) -> None:
        self._what, self._doors = what, weakref.ref(doors)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        doors = self._doors()
        if doors is not None and doors.closed:
            raise RuntimeError(perturbed_message(self._what))

    def __reduce__(self) -> Any:
        return getattr, ("", "format")  # takes any arguments and does nothing


def _remove(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()


def perturbed_message(what: str) -> str:
    """The sentence for anything that must wait until the weights are back."""
    return f"cannot {what} while the weights are perturbed: call restore() first (or leave the perturbed() block)"
