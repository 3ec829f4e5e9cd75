"""What one ``backward`` runs: the closure, or a loss of a batch, of micro-batches, or of the first samples of each."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steppe._graphs import Trace, raise_in_our_words
from steppe._nested import KEEP, cut, mapped, packed_starts, tensors_of
from steppe._reach import users
from steppe._samples import Take, read
from steppe._words import an

LossOf = Callable[..., Tensor]
Backward = Callable[[Tensor], Any]
Pause = Callable[[], AbstractContextManager[Any]]


class Nothing:
    """Marks an argument that was not given (None may be a batch)."""


NOTHING = Nothing()
_TENSOR = frozenset((Tensor,))
_WITH_BATCH = "with the batch as ONE argument"
_OF_BATCH = "a function of it, such as lambda batch: criterion(model(batch[0]), batch[1])"
_WITHOUT = "with no argument, as no batch was given"
_OF_NOTHING = "backward(loss_of, batch), or a function that takes none, such as lambda: criterion(model(x), y)"


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
    trace: Trace | None = None  # looks at the graphs, where the function is new
    asked: Any = None  # the user's function, which loss_of may be wrapped around

    @classmethod
    def of(
        cls, loss_of: LossOf, batch: Any, micro_batches: Any, backward: Backward | None, pause: Pause = nullcontext
    ) -> Work:
        """Check what ``backward`` was given and build the work."""
        if not callable(loss_of):
            raise TypeError(
                f"backward() was given {an(type(loss_of).__name__)}; expected a function that computes the loss, "
                "such as sharp.backward(lambda: criterion(model(x), y))"
            )
        if micro_batches is None:
            return cls(loss_of, ((),) if batch is NOTHING else ((batch,),), backward, pause, asked=users(loss_of))
        if batch is not NOTHING:
            raise TypeError("both batch and micro_batches were given; expected one of them")
        batches = tuple((b,) for b in micro_batches)
        if not batches:
            raise ValueError("micro_batches is empty; expected at least one micro-batch")
        return cls(loss_of, batches, backward, pause, asked=users(loss_of))

    def run(self) -> Tensor:
        """One pass over everything: gradients are accumulated, the detached sum of the losses is returned."""
        if len(self.batches) == 1:
            return _value(self._call(self.batches[0]))
        total: Tensor | None = None
        for left, arguments in zip(range(len(self.batches), 0, -1), self.batches, strict=True):
            with self.pause() if left > 1 else nullcontext():
                loss = self._call(arguments)
            value = _value(loss)
            total = value if total is None else total + value
        assert total is not None
        return total

    def _call(self, arguments: tuple[Any, ...]) -> Tensor:
        """Forward and backward, once."""
        try:
            if self.trace is not None:
                self.trace.begin()
            loss = self.loss(arguments)
            if self.trace is not None:
                self.trace.end(loss)
            loss.backward() if self.backward is None else self._backward(loss, self.backward)
            if self.trace is not None:
                self.trace.after()
            return loss
        except RuntimeError as error:
            raise_in_our_words(error)
            raise

    def loss(self, arguments: tuple[Any, ...]) -> Tensor:
        """The loss of one call, with its graph."""
        return checked(self._output(arguments))

    def _output(self, arguments: tuple[Any, ...]) -> Any:
        try:
            return self.loss_of(*arguments)
        except TypeError as error:
            _raise_of_arguments(error, self.asked, arguments)
            raise

    def _backward(self, loss: Tensor, backward: Backward) -> None:
        handle = loss.register_hook(self._note)
        try:
            backward(loss)
        finally:
            handle.remove()

    def _note(self, grad: Tensor) -> None:
        self.scale = grad.detach().reshape(())

    def first(self, samples: int | float | None, view: Callable[[Any], Any] | None = None) -> Work:
        """The same on the first samples of every batch, through a view of them."""
        if not all(self.batches):
            raise TypeError(
                "the look is at a few samples or a view of the batch (samples=..., view=...) or recorded on it "
                "(cuda_graph=True), but backward() was given a closure; expected backward(loss_of, batch), so that the "
                "batch can be sliced"
            )
        few = [b if samples is None else first_samples(b, samples) for (b,) in self.batches]
        return replace(self, batches=tuple((b if view is None else view(b),) for b in few))

    def under(self, context: Pause) -> Work:
        """The same with the loss computed in a context, such as autocast."""

        def loss_of(*arguments: Any) -> Tensor:
            with context():
                return self.loss_of(*arguments)

        return replace(self, loss_of=loss_of)


def _raise_of_arguments(error: TypeError, function: Any, arguments: tuple[Any, ...]) -> None:
    """Raise what an error means that came of the call itself, with too few or too many arguments."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)  # ours, where the call did not get into the function
    ours = last.f_globals.get("__name__", "").startswith("steppe.")
    taken = _not_taking(function, arguments) if ours else None
    if taken is None:
        return
    given, wanted = (_WITH_BATCH, _OF_BATCH) if arguments else (_WITHOUT, _OF_NOTHING)
    raise TypeError(f"the loss function takes {taken}, and is called {given}; expected {wanted}") from error


def _not_taking(function: Any, arguments: tuple[Any, ...]) -> str | None:
    """What a function takes, where it cannot be called with these arguments; None where it can, or nobody knows."""
    try:
        taken = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        taken.bind(*arguments)
    except TypeError:
        return f"({', '.join(taken.parameters)})"  # names alone: a default may be a tensor of many lines
    return None


def _value(loss: Tensor) -> Tensor:
    value = loss.detach().clone()  # a CUDA graph may write its output again
    return value.reshape(()) if value.ndim else value


def checked(loss: Any) -> Tensor:
    """A loss that a backward can start from."""
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"the loss function returned {type(loss).__name__}; expected a tensor with one element{_instead_of(loss)}"
        )
    if loss.numel() != 1:
        raise ValueError(f"the loss has shape {tuple(loss.shape)}; expected one element: take its mean() or sum()")
    if not loss.requires_grad:
        raise ValueError(
            "the loss has no graph behind it; expected one computed with gradients on and without calling .backward() "
            "or .detach() in the function"
        )
    return loss


def _instead_of(loss: Any) -> str:
    """What to return instead of something that has the loss in it."""
    if isinstance(loss, dict) and "loss" in loss:
        return ': its ["loss"]'
    if hasattr(loss, "loss"):
        return ": its .loss"
    if isinstance(loss, (tuple, list)):
        return ": the loss alone, and what else the loop needs (logits) by nonlocal, which is that of the pass at w"
    return ""


def batch_size(batch: Any) -> int:
    """How many samples a batch holds; a row of packed sequences is one."""
    return 1 if packed_starts(batch) is not None else read(batch).size or 0


def first_samples(batch: Any, samples: int | float) -> Any:
    """The first samples of a batch, without a copy.

    Args:
        batch: a tensor; tensors in tuples, lists, named tuples, mappings and dataclasses, one row for each sample; or
            a list of samples of any kind. Plain words and numbers stay (a list of as many as samples is cut). One row
            of packed sequences (a mapping with ``position_ids``, ``seq_idx`` or ``cu_seq...``) is cut behind the first
            ``samples`` of its sequences; on an accelerator that waits for where they end.
        samples: a whole number, or a fraction in (0, 1) of the batch (rounded, at least one sample).

    Raises:
        TypeError, ValueError: an object in it cannot be cut, its parts disagree on the number of samples, or it can be
            read in two ways.
    """
    if (size := _size_of_tensors(batch)) is not None:
        count = count_of(samples, size)
        return batch if count >= size else tuple(part[:count] for part in batch)
    starts = packed_starts(batch)
    if starts is not None:
        return _first_packed(batch, starts, count_of(samples, len(starts)))
    found = read(batch)
    count = count_of(samples, found.size or 0)
    if count >= (found.size or 0):
        return batch
    return found.sure().take(Take.first(count))


def _size_of_tensors(batch: Any) -> int | None:
    """How many samples a tuple of plain tensors holds, which is the commonest batch and has one reading; else None."""
    if type(batch) is not tuple or not _TENSOR.issuperset(map(type, batch)):
        return None
    if not all(part.layout is torch.strided and not part.is_nested and part.ndim for part in batch):
        return None
    sizes = {len(part) for part in batch}
    return sizes.pop() if len(sizes) == 1 else None


def chosen_samples(batch: Any, rows: Tensor) -> Any:
    """The samples of the given numbers, in their order."""
    return batch if packed_starts(batch) is not None else read(batch).sure().take(Take.rows(rows))


def count_of(samples: int | float, size: int) -> int:
    """How many of ``size`` samples: a whole number of them, or a fraction (rounded, at least one)."""
    return max(1, math.floor(samples * size + 0.5)) if isinstance(samples, float) else min(samples, size)


def _first_packed(batch: Any, starts: Tensor, count: int) -> Any:
    if count == len(starts):
        return batch
    total = next(t.shape[1] for t in tensors_of(batch) if t.ndim > 1)
    short = cut(batch, total, int(starts[count]))
    return mapped(short, lambda part, name: part[: count + 1] if name.startswith("cu_seq") else KEEP)
