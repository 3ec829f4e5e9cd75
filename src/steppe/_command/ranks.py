"""The processes of one training: who speaks, what all agree on, a model and its batches shared out among them."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from steppe._command.pool import Event, Workers

T = TypeVar("T")


def leave_at_exit() -> None:
    """Leave the other processes in good order when this one ends."""
    if dist.is_initialized():
        atexit.register(_end)


def _end() -> None:
    gc.collect()  # models that hold the process group must go before it
    if dist.is_initialized():
        dist.destroy_process_group()


def ranks() -> int:
    """How many processes train one run together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this process speaks, reads and writes for all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def check_divides(examples: int, batch_size: int) -> None:
    """Refuse batches that cannot be shared out evenly: a mean of unequal means is another loss."""
    if min(examples, batch_size) % ranks():
        raise ValueError(
            f"the {examples} training examples are one batch, which does not divide into {ranks()} equal shares; "
            f"set batch_size to a multiple of {ranks()} of at most {examples}"
        )


def agree(value: T) -> T:
    """Rank 0's value, on every rank."""
    if ranks() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    shared: T = box[0]
    return shared


def once(write: Callable[[], T]) -> T:
    """What rank 0's call gives or raises, on every rank; the others wait for it and do not call."""
    if ranks() == 1:
        return write()
    dist.barrier()  # nobody is still reading what this writes
    given: tuple[Any, Exception | None] = (None, None)
    if first():
        try:
            given = write(), None
        except Exception as error:
            given = None, error
    value, failure = agree(given)
    if failure is not None:
        raise failure
    return value


def spread(model: nn.Module, kind: str | None) -> nn.Module:
    """The model on all ranks: replicated ("ddp") or with its weights shared out ("fsdp")."""
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = next(model.parameters()).device.type
        fully_shard(model, mesh=init_device_mesh(device, (ranks(),)))
    return model


def whole(model: nn.Module, blank: Callable[[], nn.Module]) -> nn.Module:
    """A plain model with the weights of `model`, to measure: itself where it is one, else a copy of the pieces."""
    if isinstance(model, DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    if ranks() == 1:
        return model
    copy = blank()
    state = {name: v.full_tensor() if hasattr(v, "full_tensor") else v for name, v in model.state_dict().items()}
    copy.load_state_dict(state)
    return copy


def own_part(batch: tuple[Any, Tensor]) -> tuple[Any, Tensor]:
    """This rank's part of a batch."""
    if ranks() == 1:
        return batch
    own: tuple[Any, Tensor] = pytree.tree_map(lambda part: part.tensor_split(ranks())[dist.get_rank()], batch)
    return own


def averaged(loss: Tensor) -> Tensor:
    """The mean over ranks."""
    if ranks() > 1:
        dist.all_reduce(loss)
        loss /= ranks()
    return loss


class InStep(Workers):
    """Stands in for the pool of workers: jobs run here, one after the other, on all ranks at once.

    A job that fails ends the process, and torchrun ends the others, which would wait for it.
    """

    def events(self) -> Iterator[Event]:
        while self._waiting:
            job = self._waiting.popleft()
            yield Event("begun", job.key)
            yield Event("done", job.key, agree(job.function(*job.arguments)))
