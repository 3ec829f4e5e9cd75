"""The loss of a task: by name or a function of output and target, as one number for each example."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from steppe._command.lookup import nearest

LossFunction = Callable[[Tensor, Tensor], Tensor]
Loss = str | LossFunction


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Classes in the second dimension of the output, or in its last where the targets are sequences (tokens)."""
    if target.dim() > 1 and output.shape[:-1] == target.shape:
        output = output.transpose(1, -1) if output.dim() == 3 else output
    return F.cross_entropy(output, target, reduction="none")


LOSSES: dict[str, LossFunction] = {
    "cross_entropy": _cross_entropy,
    "mse": lambda output, target: F.mse_loss(output, target, reduction="none"),
    "mae": lambda output, target: F.l1_loss(output, target, reduction="none"),
    "huber": lambda output, target: F.huber_loss(output, target, reduction="none"),
}
"""Name -> loss with no reduction. Numbers (all but cross_entropy) want an output of the target's shape."""


def check_loss(loss: Loss) -> None:
    """Refuse what is no loss."""
    if not callable(loss) and loss not in LOSSES:
        hint = nearest(str(loss), LOSSES)
        raise ValueError(f"loss={loss!r} is unknown; {hint}, or give a function of output and target")


def each_of(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """The loss of each example, a tensor of the batch's length, or a number where a function of yours gives no more."""
    if callable(loss):
        found = loss(output, target)
        return found.flatten(1).mean(1) if found.dim() > 1 else found
    output = fitted(output, target) if loss != "cross_entropy" else output
    found = LOSSES[loss](output, target)
    return found.flatten(1).mean(1) if found.dim() > 1 else found


def fitted(output: Tensor, target: Tensor) -> Tensor:
    """The output in the target's shape, where it is flat or only dimensions of length one differ; never broadcast."""
    if output.shape == target.shape:
        return output
    if [n for n in output.shape if n != 1] == [n for n in target.shape if n != 1] or (
        output.dim() == 2 and target.dim() > 2 and output.shape == target.flatten(1).shape
    ):
        return output.reshape(target.shape)
    raise ValueError(
        f"the model's output has shape {tuple(output.shape)} and the target {tuple(target.shape)}; expected one number "
        "for each of the target's"
    )


def mean_of(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """The mean loss of a batch."""
    if loss == "cross_entropy" and target.dim() == 1:
        return F.cross_entropy(output, target)
    return each_of(loss, output, target).mean()
