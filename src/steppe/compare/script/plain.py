"""The base of a comparison of scripts: an object with the calls of every method, whose `backward` is a plain one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from steppe._batch import NOTHING, Backward, LossOf, Work
from steppe._draft import Last
from steppe._optimizers import Given
from steppe._parameters import parallel, without_sync
from steppe.gradient import SharpnessAware
from steppe.schedule import Bernoulli


class Plain(SharpnessAware):
    """No method: `backward` runs the function and its loss's own backward, and nothing else.

    It counts the optimizer's steps, saves and loads a state, and never ascends, so that a loop, a Trainer or Lightning
    treats it like any method. Bit for bit what ``loss.backward()`` gives.

    Args:
        model: the model whose loss is minimised.
        optimizer: any, or a list of several.
        seed: of nothing; for its state alone.

    Cost: 1 pass, no buffer.
    """

    def __init__(self, model: nn.Module, optimizer: Given, *, seed: int = 0) -> None:
        super().__init__(model, optimizer, schedule=Bernoulli(0.0), seed=seed)

    def backward(
        self,
        closure: LossOf,
        batch: Any = NOTHING,
        *,
        micro_batches: Sequence[Any] | None = None,
        backward: Backward | None = None,
    ) -> Tensor:
        """One plain pass; the arguments are those of :meth:`steppe.SharpnessAware.backward`."""
        loss = Work.of(closure, batch, micro_batches, backward, without_sync(parallel(self.model))).run()
        self.last = Last(False, loss)
        return loss

    def mark(self) -> None:
        """Nothing is to be repeated."""

    def ascend(self, *, same_step: bool = False, scale: Any = 1.0) -> bool:
        """Never: ``.grad`` already holds the gradient to hand on."""
        self.last = Last(False)
        return False

    @contextmanager
    def perturbed(self, *, scale: Any = None) -> Iterator[None]:
        """A look at the weights as they are, whose perturbation is none."""
        yield
