"""What one ``backward`` runs: the closure, or a loss of a batch, of micro-batches, or of the first samples of each."""

from __future__ import annotations

import copy
import math
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

LossOf = Callable[..., Tensor]
Backward = Callable[[Tensor], Any]
Pause = Callable[[], AbstractContextManager[Any]]


class Nothing:
    """Marks an argument that was not given (None may be a batch)."""


NOTHING = Nothing()


@dataclass
class Work:
    """Forward and backward passes over one optimizer step's data.

    After :meth:`run`, ``scale`` is what the host's own backward multiplied the loss by (a GradScaler's scale, a
    division by the number of micro-batches): autograd hands exactly that to a hook on the loss, on its device.
    """

    loss_of: LossOf
    batches: tuple[tuple[Any, ...], ...]  # the arguments of each call of loss_of
    backward: Backward | None = None
    pause: Pause = nullcontext  # the context of all micro-batches but the last: their gradients are averaged with it
    scale: Tensor | float = 1.0

    @classmethod
    def of(
        cls, loss_of: LossOf, batch: Any, micro_batches: Any, backward: Backward | None, pause: Pause = nullcontext
    ) -> Work:
        """Check what ``backward`` was given and build the work."""
        if not callable(loss_of):
            raise TypeError(
                f"backward() was given a {type(loss_of).__name__}; expected a function that computes the loss, "
                "such as sharp.backward(lambda: criterion(model(x), y))"
            )
        if micro_batches is None:
            return cls(loss_of, ((),) if batch is NOTHING else ((batch,),), backward, pause)
        if batch is not NOTHING:
            raise TypeError("both batch and micro_batches were given; expected one of them")
        batches = tuple((b,) for b in micro_batches)
        if not batches:
            raise ValueError("micro_batches is empty; expected at least one micro-batch")
        return cls(loss_of, batches, backward, pause)

    def run(self) -> Tensor:
        """One pass over everything: gradients are accumulated, the detached sum of the losses is returned."""
        total: Tensor | None = None
        for left, arguments in zip(range(len(self.batches), 0, -1), self.batches, strict=True):
            with self.pause() if left > 1 else nullcontext():
                loss = _checked(self.loss_of(*arguments))
                self._backward(loss)
            value = loss.detach().clone().reshape(())  # a CUDA graph may write its output again
            total = value if total is None else total + value
        assert total is not None
        return total

    def _backward(self, loss: Tensor) -> None:
        if self.backward is None:
            loss.backward()
            return
        handle = loss.register_hook(self._note)
        try:
            self.backward(loss)
        finally:
            handle.remove()

    def _note(self, grad: Tensor) -> None:
        self.scale = grad.detach().reshape(())

    def first(self, samples: int | float) -> Work:
        """The same on the first samples of every batch."""
        if not all(self.batches):
            raise TypeError(
                "the ascent looks at a few samples (samples=...), but backward() was given a closure; "
                "expected backward(loss_of, batch), so that the batch can be sliced"
            )
        return Work(
            self.loss_of, tuple((first_samples(b, samples),) for (b,) in self.batches), self.backward, self.pause
        )


def _checked(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss function returned {type(loss).__name__}; expected a tensor with one element")
    if loss.numel() != 1:
        raise ValueError(f"the loss has shape {tuple(loss.shape)}; expected one element: take its mean() or sum()")
    if not loss.requires_grad:
        raise ValueError(
            "the loss has no graph behind it; expected one computed with gradients on and without calling .backward() "
            "or .detach() in the function"
        )
    return loss


def batch_size(batch: Any) -> int:
    """The length of the first tensor's first dimension, searched through tuples, lists and mappings."""
    for tensor in _tensors(batch):
        return tensor.shape[0]
    raise TypeError(
        f"the batch ({type(batch).__name__}) holds no tensor with a first dimension; expected tensors in tuples, "
        "lists or dicts, to take the first samples of"
    )


def first_samples(batch: Any, samples: int | float) -> Any:
    """The first samples of a batch: every tensor (or plain list) whose length is the batch size is sliced.

    Args:
        batch: a tensor, or tensors in tuples, lists, named tuples and mappings; anything else is kept.
        samples: a whole number, or a fraction in (0, 1) of the batch (rounded, at least one sample).
    """
    size = batch_size(batch)
    count = max(1, math.floor(samples * size + 0.5)) if isinstance(samples, float) else min(samples, size)
    return _sliced(batch, size, count)


def _like(batch: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """The items in a mapping of the same class (BatchEncoding has methods of its own), where a copy is a real one."""
    if not isinstance(batch, (dict, UserDict)):
        return items
    new = copy.copy(batch)
    new.update(items)
    return new


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch] if batch.ndim else []
    if isinstance(batch, Mapping):
        return [t for v in batch.values() for t in _tensors(v)]
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        return [t for v in batch for t in _tensors(v)]
    return []


def _sliced(batch: Any, size: int, count: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[:count] if batch.ndim and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        return _like(batch, {k: _sliced(v, size, count) for k, v in batch.items()})
    if not isinstance(batch, (list, tuple)):
        return batch
    if len(batch) == size and not _tensors(batch):
        return batch[:count]
    parts = [_sliced(v, size, count) for v in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
