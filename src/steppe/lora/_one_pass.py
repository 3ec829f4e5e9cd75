"""What the methods share that perturb a LoRA model inside its own pass: one backward, and a count of real steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steppe._batch import NOTHING, Backward, LossOf, Work
from steppe._draft import Last
from steppe._optimizers import Given
from steppe._parameters import without_sync
from steppe._steps import Steps, listeners
from steppe._sync import refuse_uneven
from steppe._wiring import check_arguments
from steppe.lora._layers import Layer, find_layers

S = TypeVar("S", bound="OnePass")


class OnePass:
    """A method that looks at perturbed weights in the only pass of a step.

    The perturbation is there wherever the model runs in training mode, and inside :meth:`backward`; ``model.eval()``
    shows the model as it will be saved. The parameters themselves are never written to.
    """

    hosts_length = False  # whether the host that runs the training gave total_steps

    def __init__(self, model: nn.Module, optimizer: Given, seed: int) -> None:
        self._optimizers = check_arguments(model, optimizer, seed)
        self.model, self.optimizer, self.seed = model, optimizer, seed
        self.layers = find_layers(model, self._optimizers.params())
        self.step, self.last = 0, Last(False)
        self._steps: Steps | None = None
        self._inside = False
        self._handles: list[RemovableHandle] = []

    def backward(
        self,
        closure: LossOf,
        batch: Any = NOTHING,
        *,
        micro_batches: Sequence[Any] | None = None,
        backward: Backward | None = None,
    ) -> Tensor:
        """Add the gradient at the perturbed weights to ``.grad`` and return the loss there, in one pass.

        In training mode ``loss.backward()`` does the same.

        Args:
            closure: computes the scalar loss.
            batch: handed to ``closure``, if given.
            micro_batches: the batch in pieces, whose losses add up; all see the same perturbation.
            backward: the host's own backward, such as ``lambda loss: scaler.scale(loss).backward()``.

        Returns:
            The detached loss at the perturbed weights, 0-dim.
        """
        refuse_uneven(self.model)
        work = Work.of(closure, batch, micro_batches, backward, without_sync(self.model))
        self._inside = True
        try:
            loss = self._pass(work)
        finally:
            self._inside = False
            self._end()
        self.last = Last(False, loss)
        return loss

    def remove(self) -> None:
        """Leave model and optimizer: from now on they are as they were before."""
        self._end()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._steps is not None:
            self._steps.remove()

    def __repr__(self) -> str:
        """The settings, how many layers, and the position."""
        shown = ", ".join(f"{key}={value!r}" for key, value in self._settings().items())
        return f"{type(self).__name__}({shown}, layers={len(self.layers)}, step={self.step})"

    # What a method adds

    def _settings(self) -> dict[str, Any]:
        raise NotImplementedError

    def _pass(self, work: Work) -> Tensor:
        return work.run()

    def _end(self) -> None:
        """After a pass, also a broken one."""

    def _stepped(self) -> None:
        """After a real step of the optimizer, before it is counted."""

    # How it is tied to model and optimizer

    def _active(self, layer: Layer) -> bool:
        return (self._inside or layer.base.training) and layer.in_use

    def _listen(self) -> None:
        """Hear of real steps; the optimizer keeps this object alive. An older one of the same layers goes."""
        for older in listeners(self._optimizers, OnePass):
            if {e.module for e in older.layers} & {e.module for e in self.layers}:
                older.remove()  # a cell run again, a second training
        self._steps = Steps(self, self._optimizers, keep=True)

    def _weakly(self: S, index: int, call: Callable[[S, int, nn.Module, Any, Any], Any]) -> Callable[..., Any]:
        """A hook of layer ``index`` that a copy of the model carries along without effect."""
        me = weakref.ref(self)

        def hook(module: nn.Module, args: Any, output: Any = None) -> Any:
            it = me()
            return call(it, index, module, args, output) if it is not None and module is it.layers[index].base else None

        return hook

    def _before_step(self, which: int, args: Any, kwargs: dict[str, Any]) -> None:
        pass

    _awaits_step = False  # nothing of a gradient is kept for the step

    def _after_step(self, which: int, skipped: Tensor | bool) -> None:
        assert self._steps is not None
        if bool(skipped) or not self._steps.stepped(which)[0]:
            return
        self._stepped()
        self.step += 1


def checked_state(state: Any, kind: str, keys: set[str], layers: tuple[Layer, ...]) -> None:
    """Refuse what is no state of this class and of these layers."""
    wanted = {"format", "step", "layers", *keys}
    if not isinstance(state, dict) or set(state) != wanted or state["format"] != f"{kind} 1":
        raise ValueError(f"this is not the state of a steppe.{kind} (format 1): pass what its state_dict() returned")
    if state["layers"] != [each.name for each in layers]:
        raise ValueError(
            f"the state is of {len(state['layers'])} LoRA layers, the model has {len(layers)} or others of them: "
            "load it into the model it was saved from"
        )
