"""Whose gradient the ascent follows, when several processes train one model with DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from steppe.combine import Combine, Replace
from steppe.schedule import Schedule

Sync = str | int


class Averaging:
    """What happens between processes in a pass that only looks for the direction of ascent.

    "global": gradients are averaged over all ranks as in any backward, so every rank perturbs alike. "rank": they are
    not, each rank perturbs along its own (m-sharpness with m one rank's batch), and one all-reduce is saved. A number
    m: they are averaged over groups of m neighbouring ranks.
    """

    def __init__(self, sync: Sync, model: nn.Module, schedule: Schedule, combine: Combine) -> None:
        _check(sync, model, schedule, combine)
        self._alone = model if sync != "global" else None
        self._group: Any = None
        if isinstance(sync, int) and sync > 1:
            self._group, _ = dist.new_subgroups(sync)

    @property
    def puts_off(self) -> bool:
        """Whether the first pass is not averaged as any other."""
        return self._alone is not None

    def first_pass(self) -> AbstractContextManager[Any]:
        """The context of the pass whose gradient is only a direction."""
        return nullcontext() if self._alone is None else self._alone.no_sync()  # type: ignore[operator]

    def average(self, grads: Iterable[Tensor]) -> None:
        """Average over this rank's group, where there are groups: one all-reduce of everything."""
        if self._group is None or not (here := list(grads)):
            return
        flat = torch.cat([g.reshape(-1) for g in here])
        dist.all_reduce(flat, group=self._group)
        flat /= dist.get_world_size(self._group)
        for grad, piece in zip(here, flat.split([g.numel() for g in here]), strict=True):
            grad.copy_(piece.view_as(grad))


def _check(sync: Sync, model: nn.Module, schedule: Schedule, combine: Combine) -> None:
    if sync == "global":
        return
    if sync != "rank" and (isinstance(sync, bool) or not isinstance(sync, int) or sync < 1):
        raise ValueError(f"sync={sync!r} was given; expected 'global', 'rank' or a number of ranks to perturb alike")
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"sync={sync!r} was given with a {type(model).__name__}; expected the DistributedDataParallel model "
            "itself, whose averaging can be put off"
        )
    if not isinstance(combine, Replace) or schedule.needs_gradient:
        raise ValueError(
            f"sync={sync!r} was given with {combine!r} and {schedule!r}; expected Replace() and a schedule that does "
            "not read the gradient, as everything else needs the averaged one: use sync='global'"
        )
    if isinstance(sync, int) and dist.get_world_size() % sync:
        raise ValueError(f"sync={sync} was given with {dist.get_world_size()} ranks; expected a number that divides it")
