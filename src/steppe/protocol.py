"""What every method is to a loop: one protocol, and what it needs of a loop that somebody else owns, declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from steppe._batch import NOTHING, Backward, LossOf
from steppe._draft import Last
from steppe._optimizers import Given
from steppe._words import an


@dataclass(frozen=True)
class Needs:
    """What a method needs of the loop that runs it, for hosts whose loop is not the user's own.

    Attributes:
        passes: the passes are the method's to run: the loss is computed again at other weights. False: the host's own
            pass is the only one, and the method acts within it or in the optimizer's step.
        look: it looks at a part or a view of the batch first, in a pass of its own.
        ahead: the weights are perturbed before the first pass. With this or ``look`` a forward that the host has run
            already is of no use.
        per_sample: the loss function returns one loss per sample, not their mean.
        parts: some of the weights get no gradient in a step.
        rate_below: the learning rate of every step is less than this; None: any.
    """

    passes: bool = False
    look: bool = False
    ahead: bool = False
    per_sample: bool = False
    parts: bool = False
    rate_below: float | None = None


@runtime_checkable
class Method(Protocol):
    """A sharpness-aware method on a model and an optimizer: what :class:`steppe.SharpnessAware` and BAR have in common.

    A loop calls :meth:`backward` in the place of ``loss.backward()`` and steps ``optimizer`` itself. An object of your
    own that has all of this works wherever a method of steppe's does: SharpTrainer, SharpCallback, SharpOptimizer. Its
    recipe is a function of (model, optimizer); one that also takes ``total_steps`` is given the length of the training
    by hosts that know it, and they set ``hosts_length`` on what it makes.

    Attributes:
        optimizer: the very object that it was built with, one optimizer or a list of several.
        step: real optimizer steps so far; skipped ones (GradScaler) do not count.
        last: what the latest ``backward`` did.
        needs: what it needs of a host.
        hosts_length: whether ``total_steps`` is the host's: a resumed training may be longer.
    """

    optimizer: Given
    last: Last
    hosts_length: bool

    @property
    def step(self) -> int:
        """Real optimizer steps so far."""

    @property
    def needs(self) -> Needs:
        """What it needs of a host."""

    def backward(
        self,
        closure: LossOf,
        batch: Any = NOTHING,
        *,
        micro_batches: Sequence[Any] | None = None,
        backward: Backward | None = None,
    ) -> Tensor:
        """Add the method's gradient to ``.grad`` and return the detached loss."""

    def state_dict(self) -> dict[str, Any]:
        """Position, memory and settings as plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""


def needs_of(made: Any) -> Needs:
    """What an object declares that it needs; nothing, where it declares nothing (one of the user's own, or None)."""
    found: Needs = getattr(made, "needs", Needs())
    return found


def checked(made: Any, what: str, host: str) -> Any:
    """A method that a host can run.

    Args:
        made: from the user, or from a recipe of the user's.
        what: where it comes from, for the sentence.
        host: who runs it and has the mean loss of a batch only.

    Raises:
        TypeError: it is no method. ValueError: it needs one loss per sample.
    """
    if not isinstance(made, Method):
        raise TypeError(
            f"{what} {an(type(made).__name__)}; expected a steppe object on the model and the optimizer, such as "
            "steppe.SAM(model, optimizer)"
        )
    if made.needs.per_sample:
        raise ValueError(
            f"{what} a method that needs one loss per sample (hardest, ESAM, K-SAM), and {host} has the mean loss "
            "only; expected a method without it: write a loop of your own with sharp.backward(loss_of, batch)"
        )
    return made
