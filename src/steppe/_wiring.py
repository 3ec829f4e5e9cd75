"""How SharpnessAware is tied to a model and an optimizer: checks and one warning."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from steppe._optimizers import Optimizers
from steppe._parts import Part
from steppe._rates import check_rates
from steppe.ahead import Ahead
from steppe.ascent import Ascent
from steppe.combine import Combine
from steppe.curves import FollowLR

P = TypeVar("P", bound=Part)


def part_or_default(name: str, value: P | None, kind: type[P], default: type[P]) -> P:
    """The part that was given, or the default one."""
    if value is None:
        return default()
    if not isinstance(value, kind):
        raise TypeError(f"{name}={value!r} was given; expected a steppe {kind.__name__} part such as {default()!r}")
    return value


def check_arguments(model: Any, optimizer: Any, seed: Any) -> Optimizers:
    """Refuse what cannot work, before anything is built; what was given as the optimizer, seen as one."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; expected a torch.nn.Module (the model itself, not its parameters)"
        )
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise TypeError(
            "model is sharded by FullyShardedDataParallel (FSDP1), whose flat shards hide the norms; expected "
            "fully_shard (FSDP2)"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed={seed!r} was given; expected a whole number")
    return Optimizers(optimizer)


CORRECTION = "WSAM's correction"


def check_optimizers(optimizers: Optimizers, ascent: Ascent, combine: Combine) -> None:
    """Refuse optimizers that cannot serve the parts of a method."""
    if isinstance(ascent.direction, Ahead):
        for stepper in optimizers.steppers:
            ascent.direction.check(stepper.optimizer)
    if combine.corrects:
        check_rates(optimizers, CORRECTION, exact=True)
    if isinstance(ascent.rho, FollowLR):
        check_rates(optimizers, f"the radius of {ascent.rho!r}")
    climbing = optimizers.climbing()
    if ascent.per_sample and any(climbing) and not all(climbing):
        raise ValueError(
            f"hardest={ascent.hardest!r} was given with maximize=True in some groups and not in others, so that no "
            "sample is the hardest for all; expected the same in every group"
        )


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
