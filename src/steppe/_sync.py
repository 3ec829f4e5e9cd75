"""Whose gradient the ascent follows, when several processes train one model with DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steppe._parameters import parallel
from steppe._words import an
from steppe.ascent import Ascent
from steppe.combine import Combine, Replace
from steppe.schedule import Schedule

Sync = str | int


class Averaging:
    """What happens between processes in a pass that only looks for the direction of ascent.

    "global": gradients are averaged over all ranks as in any backward, so every rank perturbs alike. "rank": they are
    not, each rank perturbs along its own (m-sharpness with m one rank's batch), and one all-reduce is saved. A number
    m: they are averaged over groups of m neighbouring ranks.

    Attributes:
        puts_off: whether the first pass is not averaged as any other.
    """

    def __init__(self, sync: Sync, model: nn.Module, ascent: Ascent, schedule: Schedule, combine: Combine) -> None:
        _check(sync, model, ascent, schedule, combine)
        self._alone = parallel(model) if sync != "global" else None
        self.puts_off = self._alone is not None
        self._group: Any = None
        if isinstance(sync, int) and sync > 1:
            self._group, _ = dist.new_subgroups(sync)

    def first_pass(self) -> AbstractContextManager[Any]:
        """The context of the pass whose gradient is only a direction."""
        return nullcontext() if self._alone is None else self._alone.no_sync()

    def average(self, grads: Iterable[Tensor]) -> None:
        """Average over this rank's group, where there are groups: one all-reduce of everything."""
        if self._group is None or not (here := list(grads)):
            return
        average_all(here, self._group)


def average_earlier(model: nn.Module, grads: list[Tensor]) -> None:
    """Average the gradients of earlier micro-batches, when this backward is the one that averages.

    In accumulation, DistributedDataParallel averages what has accumulated in ``.grad`` at the last micro-batch; earlier
    gradients that were put aside were not there to be averaged. Those that were averaged already do not change.
    """
    wrapper = parallel(model)
    if wrapper is not None and grads and wrapper.require_backward_grad_sync and wrapper.process_group.size() > 1:
        average_all(grads, wrapper.process_group)


def refuse_uneven(model: nn.Module) -> None:
    """Refuse DistributedDataParallel's join() of ranks with fewer batches: their counts of steps would drift apart."""
    wrapper = parallel(model)
    if wrapper is not None and wrapper._join_config.enable and not wrapper._join_config.throw_on_early_termination:
        raise RuntimeError(
            "the model is in join(), where a rank that is out of batches takes no further steps, so that the ranks' "
            "counts of steps and their decisions drift apart; expected as many batches on every rank, or "
            "join(throw_on_early_termination=True)"
        )


def refuse_unreduced(model: nn.Module) -> None:
    """Refuse FSDP2 with its gradient sync off, whose gradients are kept where two passes would add up."""
    for module in model.modules():
        if any(not group.reduce_grads for group in _fsdp_groups(module)):
            raise RuntimeError(
                "backward() was called with FSDP2's gradient sync off, where both passes' gradients would add up; "
                "expected set_requires_gradient_sync(True), or backward(loss_of, micro_batches=[...]) for accumulation"
            )


def _fsdp_groups(module: nn.Module) -> list[Any]:
    find = getattr(module, "_get_fsdp_state", None)
    if not callable(find):
        return []
    state = find()
    several = getattr(state, "_fsdp_param_groups", None)  # torch 2.13 on
    found = [state._fsdp_param_group] if several is None else several
    return [group for group in found if group is not None]


def average_all(grads: list[Tensor], group: Any) -> None:
    """Average tensors over the ranks of a group, in place, with one all-reduce."""
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    for grad, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(piece.view_as(grad))


def _check(sync: Sync, model: nn.Module, ascent: Ascent, schedule: Schedule, combine: Combine) -> None:
    if sync == "global":
        return
    if sync != "rank" and (isinstance(sync, bool) or not isinstance(sync, int) or sync < 1):
        raise ValueError(f"sync={sync!r} was given; expected 'global', 'rank' or a number of ranks to perturb alike")
    if (wrapper := parallel(model)) is None:
        raise ValueError(
            f"sync={sync!r} was given with {an(type(model).__name__)}; expected the DistributedDataParallel model "
            "itself, whose averaging can be put off"
        )
    if wrapper.static_graph:
        raise ValueError(
            f"sync={sync!r} was given with static_graph=True, under which averaging cannot be put off; "
            "expected static_graph=False, or sync='global'"
        )
    remembers = ascent.direction.ahead or ascent.direction.remembers
    if not isinstance(combine, Replace) or schedule.needs_gradient or remembers:
        raise ValueError(
            f"sync={sync!r} was given with {combine!r}, {schedule!r} and {ascent.direction!r}; expected Replace(), and "
            "a schedule and a direction that do not read or keep gradients, as those need averages: use sync='global'"
        )
    if isinstance(sync, int) and dist.get_world_size() % sync:
        raise ValueError(f"sync={sync} was given with {dist.get_world_size()} ranks; expected a number that divides it")
