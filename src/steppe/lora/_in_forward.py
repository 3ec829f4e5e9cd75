"""What Flat-LoRA and Bi-LoRA share: they perturb LoRA layers inside the model's own pass, by hooks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steppe._batch import Work
from steppe._optimizers import Given
from steppe.lora._layers import Layer, find_layers
from steppe.lora._one_pass import OnePass


class InForward(OnePass):
    """One that perturbs LoRA layers inside the model's own pass, by hooks of the layers inside them.

    The perturbation is there wherever the model runs in training mode, and inside :meth:`backward`; ``model.eval()``
    shows the model as it will be saved, and so do adapters that this optimizer does not train (a reference model).
    The parameters themselves are never written to.
    """

    HOOKS: ClassVar[tuple[str, ...]]
    """Its methods before and after the forward of a base layer, or after alone: called with (index, module, ...)."""

    layers: tuple[Layer, ...]
    _inside = False

    def __init__(self, model: nn.Module, optimizer: Given, settings: dict[str, Any]) -> None:
        self._handles: list[RemovableHandle] = []
        super().__init__(model, optimizer, settings)
        self._tie()

    def _fit(self, layers: tuple[Layer, ...]) -> None:
        """Refuse layers that it cannot perturb."""

    def _find(self) -> None:
        stepped = self._optimizers.params()
        layers = find_layers(self.model, stepped)
        self._fit(layers)
        self.layers, self._trained = layers, stepped
        if self._handles:
            self._unhang()
            self._hang()

    def _names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    def _tie(self) -> None:
        """Hear of passes and steps. An older one of the same layers goes: a cell run again, a second training."""
        for older in set(_owners(self.layers)):
            older.remove()
        self._listen()
        self._hang()

    def _hang(self) -> None:
        *before, after = self.HOOKS
        for index, layer in enumerate(self.layers):
            for call in before:
                self._handles.append(layer.base.register_forward_pre_hook(_Hook(self, index, call)))
            hook = _Hook(self, index, after)
            self._handles.append(layer.base.register_forward_hook(hook, always_call=bool(before)))

    def _unhang(self) -> None:
        self._end()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def remove(self) -> None:
        """Leave model and optimizer: from now on they are as they were before."""
        self._unhang()
        super().remove()

    def _pass(self, work: Work) -> Tensor:
        """The pass, within which the calls named in ``HOOKS`` perturb every layer."""
        self._inside = True
        try:
            return work.run()
        finally:
            self._inside = False

    def _active(self, layer: Layer) -> bool:
        return (self._inside or layer.base.training) and layer.in_use(self._trained)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles of it together with its model and optimizer."""
        return super().__getstate__() | {"_handles": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy hangs on its own model, whose copied hooks have no effect."""
        super().__setstate__(state)
        if self._steps is not None:
            self._hang()


class _Hook:
    """A hook of layer ``index``; a copy or a pickle of the model carries along one without effect."""

    def __init__(self, owner: InForward, index: int, call: str) -> None:
        self.owner, self._index, self._call = weakref.ref(owner), index, call

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> Any:
        it = self.owner()
        if it is None or module is not it.layers[self._index].base:  # a replica (DataParallel) shares the hooks
            return None
        return getattr(it, self._call)(self._index, module, args, output)

    def __reduce__(self) -> Any:
        return _idle, ()


def _nothing(*_: Any) -> None:
    return None


def _idle() -> Any:
    return _nothing


def _owners(layers: tuple[Layer, ...]) -> Iterator[InForward]:
    """Who perturbs these layers already."""
    hooks = (h for layer in layers for h in layer.base._forward_hooks.values())
    owners = (h.owner() for h in hooks if isinstance(h, _Hook))
    return (one for one in owners if one is not None)
