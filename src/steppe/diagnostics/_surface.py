"""The mean loss over some batches as a function of a model's trained weights: values, gradients, Hessian products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from steppe._algebra import add_scaled_
from steppe._bound import Bound, places
from steppe._graphs import NO_GRAPH
from steppe._guards import forget_derived
from steppe._nested import fresh
from steppe._parameters import names_of
from steppe._randomness import Randomness
from steppe._shards import is_sharded
from steppe._state import Watch
from steppe.diagnostics._untouched import as_before, modules_of

LossOf = Callable[[Any], Tensor]
Weigh = Callable[[Any], float]


class NotFinite(ValueError):  # noqa: N818 - what is told to a user is its sentence
    """The loss, or what is made of it, is NaN or inf at the weights that are looked at."""


class NoLoss(TypeError, ValueError):  # noqa: N818 - what is told to a user is its sentence
    """What the function of the loss returns is none: a TypeError, and in a command bad input as any other."""


class Surface:
    """The loss that a model is looked at by: the mean over ``batches``, each counting what ``weigh`` says (the same).

    The model is in whatever mode it is handed over in. Each pass draws the same random numbers and begins from the
    same buffers, so that this is one function of the weights that require a gradient, with dropout too. Batches are
    kept as a list: hand in a part of a long loader (``itertools.islice(loader, 8)``).
    """

    def __init__(self, model: nn.Module, loss_of: LossOf, batches: Iterable[Any], weigh: Weigh | None = None) -> None:
        if not isinstance(model, nn.Module) or not callable(loss_of):
            raise TypeError(
                f"model={type(model).__name__} and loss_of={loss_of!r} were given; expected a torch.nn.Module and the "
                "function from a batch to its loss"
            )
        self.model, self._loss_of, self.weigh = model, loss_of, weigh
        # Nothing in a batch may count: its mean is 0/0.
        self.batches = [batch for batch in batches if weigh is None or weigh(batch)]
        self.named = {name: w for w, name in names_of(model).items() if w.requires_grad}
        self.weights: list[nn.Parameter] = list(self.named.values())
        self._differentiates, self._default = False, torch.get_default_device()
        self._check()

    def _check(self) -> None:
        if not self.batches:
            raise ValueError("batches gave no batch; expected a list of batches, or a loader, with at least one")
        if not self.weights:
            raise ValueError("no parameter of the model requires a gradient; expected some that are trained")
        for name, weight in self.named.items():
            if is_sharded(weight) or weight.is_complex():
                raise ValueError(
                    f"parameter {name} is {'complex' if weight.is_complex() else 'spread over processes (a DTensor)'}; "
                    "expected whole real weights: load them into one process to look at them"
                )

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(w.numel() for w in self.weights)

    @contextmanager
    def lent(self) -> Iterator[Surface]:
        """In the block the weights may be moved; afterwards everything is back bit for bit, also after an error."""
        with as_before(self.model, self._loss_of):
            modules = modules_of(self.model, self._loss_of)
            self._generators = Randomness({w.device for w in self.weights})
            self._state = Watch(lambda: modules, lambda: list(self.model.parameters())).start()
            self._bound = Bound(places(self._loss_of, ()))
            try:
                yield self
            finally:
                del self._generators, self._state, self._bound

    def loss(self, batches: Sequence[Any] | None = None) -> float:
        """The mean loss at the present weights; over other batches, where some are given."""
        forget_derived()
        counts, over = self._counted(batches)
        return sum(count * float(self._value(batch)) for count, batch in zip(counts, over, strict=True)) / sum(counts)

    def _counted(self, batches: Sequence[Any] | None = None) -> tuple[list[float], Sequence[Any]]:
        """How much each batch counts, and the batches."""
        over = self.batches if batches is None else batches
        return [1.0 if self.weigh is None else float(self.weigh(batch)) for batch in over], over

    def _value(self, batch: Any) -> Tensor:
        """The loss, without a graph unless it takes derivatives of its own (a PINN, a gradient penalty)."""
        if not self._differentiates:
            try:
                with torch.no_grad():
                    return self._pass(batch)
            except RuntimeError as error:
                if NO_GRAPH not in str(error):
                    raise
                self._differentiates = True
        with torch.enable_grad():
            return self._pass(batch).detach()

    def here(self) -> float:
        """The loss at the weights as they were given; refused where it is not finite."""
        if not math.isfinite(loss := self.loss()):
            raise NotFinite(
                f"the loss at the model's weights is {loss}; expected a finite one: look for NaN or inf in the weights "
                "(a training that diverged) and in the batches"
            )
        return loss

    def gradient(self, batches: Sequence[Any] | None = None) -> list[Tensor]:
        """The gradient of :meth:`loss`, one tensor for each weight."""
        total = [torch.zeros_like(w) for w in self.weights]
        forget_derived()
        counts, over = self._counted(batches)
        for count, batch in zip(counts, over, strict=True):
            found = torch.autograd.grad(self._scalar(batch), self.weights, allow_unused=True, materialize_grads=True)
            add_scaled_(total, found, count / sum(counts))
        return total

    def product(self, vector: Sequence[Tensor]) -> list[Tensor]:
        """The Hessian of :meth:`loss` times ``vector``, by two backwards through every batch."""
        total = [torch.zeros_like(w) for w in self.weights]
        forget_derived()
        counts, over = self._counted()
        with _differentiable_twice(self.model):
            for count, batch in zip(counts, over, strict=True):
                add_scaled_(total, self._product(batch, vector), count / sum(counts))
        return total

    def _product(self, batch: Any, vector: Sequence[Tensor]) -> Sequence[Tensor]:
        loss = self._scalar(batch)
        grads = torch.autograd.grad(loss, self.weights, create_graph=True, allow_unused=True)
        bent = [(g, v) for g, v in zip(grads, vector, strict=True) if g is not None and g.requires_grad]
        if not bent:
            return [torch.zeros_like(w) for w in self.weights]
        outputs, along = zip(*bent, strict=True)
        return torch.autograd.grad(outputs, self.weights, along, allow_unused=True, materialize_grads=True)

    def _scalar(self, batch: Any) -> Tensor:
        loss = self._pass(batch)
        if not loss.requires_grad:
            raise ValueError(
                "the loss does not depend on the model's trained weights; expected loss_of to run the very model that "
                "was given, with its graph"
            )
        return loss

    def _pass(self, batch: Any) -> Tensor:
        self._state.back()
        self._bound.done()
        self._generators.set()
        with in_default(self._default):
            loss = self._loss_of(fresh(batch))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise NoLoss(f"loss_of returned {given}; expected the batch's loss, a tensor of one number")
        return loss.reshape(())


def in_default(device: torch.device) -> AbstractContextManager[Any]:
    """In the block new tensors lie on this device, where nothing else is said."""
    return nullcontext() if torch.get_default_device() == device else device


@contextmanager
def _differentiable_twice(model: nn.Module) -> Iterator[None]:
    """Fused kernels of attention and of cuDNN's recurrent layers have no second derivative: the plain ones are used."""
    with ExitStack() as changes:
        changes.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            changes.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield
