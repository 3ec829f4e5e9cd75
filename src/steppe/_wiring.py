"""How SharpnessAware is tied to a model and an optimizer: checks, hooks and one warning."""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from steppe._algebra import norm
from steppe._parts import Part

if TYPE_CHECKING:
    from steppe.gradient import SharpnessAware

P = TypeVar("P", bound=Part)


def part_or_default(name: str, value: P | None, kind: type[P], default: type[P]) -> P:
    """The part that was given, or the default one."""
    if value is None:
        return default()
    if not isinstance(value, kind):
        raise TypeError(f"{name}={value!r} was given; expected a steppe {kind.__name__} part such as {default()!r}")
    return value


def check_arguments(model: Any, optimizer: Any, seed: Any) -> None:
    """Refuse what cannot work, before anything is built."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; expected a torch.nn.Module (the model itself, not its parameters)"
        )
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise TypeError(
            "model is sharded by FullyShardedDataParallel (FSDP1), whose flat shards hide the norms; expected "
            "fully_shard (FSDP2)"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer that is already built"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed={seed!r} was given; expected a whole number")


def listen(sharp: SharpnessAware, optimizer: Optimizer) -> None:
    """Hear of the optimizer's real steps."""
    # Weak, so that an object that is no longer used neither lives on in the optimizer nor counts its steps.
    me = weakref.ref(sharp)

    def before(*_: Any) -> None:
        if (it := me()) is not None:
            it._before_step()

    def after(*_: Any) -> None:
        if (it := me()) is not None:
            it._after_step()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def was_rehearsal(optimizer: Optimizer) -> bool:
    """Whether torch's checkpoint module stepped with lr = 0 and zero gradients, to make the optimizer's state."""
    groups = optimizer.param_groups
    # It puts the number 0.0 or a tensor on the CPU in place of each rate: nothing else is worth waiting for.
    if any((isinstance(g["lr"], Tensor) and g["lr"].device.type != "cpu") or g["lr"] != 0 for g in groups):
        return False
    grads = [p.grad for g in groups for p in g["params"] if p.grad is not None]
    return bool(grads) and not bool(norm(grads) > 0)


def warn_of_fresh_masks(model: nn.Module) -> None:
    """Say once that the masks of a pass that was not marked cannot be repeated."""
    if any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in model.modules()):
        warnings.warn(
            "ascend() without mark(): the second pass draws fresh dropout masks; call sharp.mark() before the first "
            "forward, or construct with same_dropout=False",
            stacklevel=3,
        )


def refuse_per_sample(sharp: Any, host: str) -> None:
    """Refuse a method that needs one loss per sample where the host has only their mean."""
    if getattr(getattr(sharp, "ascent", None), "per_sample", False):
        raise ValueError(
            f"hardest={sharp.ascent.hardest!r} (ESAM) was given, but {host} has the mean loss only, not one per "
            "sample; expected a method without it: write a loop of your own with sharp.backward(loss_of, batch)"
        )
