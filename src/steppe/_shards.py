"""Tensors that are spread over processes (DTensor: FSDP2, tensor parallelism), seen as what lies here.

Elementwise work needs only the local piece; sums of squares and products need the others' too: one all-reduce for a
whole list. Plain tensors pass through untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor (told by its attribute: importing the class costs what most users never need)."""
    return hasattr(tensor, "placements")


_PLAIN = frozenset((Tensor, nn.Parameter))


def all_here(tensors: Iterable[Tensor]) -> bool:
    """Whether none of them is a DTensor."""
    return _PLAIN.issuperset(map(type, tensors)) or not any(hasattr(t, "placements") for t in tensors)


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The pieces that lie in this process, sharing storage with the tensors."""
    tensors = list(tensors)
    if _PLAIN.issuperset(map(type, tensors)):
        return tensors
    return [_piece(t) if hasattr(t, "placements") else t for t in tensors]


def summed(values: list[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Per-tensor sums over the local pieces (0-dim), made sums over the whole tensors."""
    where: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    if all_here(tensors):
        return values
    for i, tensor in enumerate(tensors):
        if is_sharded(tensor) and _split_dims(tensor):
            where.setdefault((tensor.device_mesh, _split_dims(tensor)), []).append(i)  # type: ignore[attr-defined]
    for (mesh, dims), indices in where.items():
        total = torch.stack([values[i] for i in indices])
        for dim in dims:
            dist.all_reduce(total, group=mesh.get_group(dim))
        for i, value in zip(indices, total.unbind(), strict=True):
            values[i] = value
    return values


def gather_again(model: nn.Module, broken: bool = False) -> None:
    """Make FSDP2 gather the weights anew in the next pass, whatever it has kept gathered.

    It keeps the root's after a forward without a backward, and all of them with ``set_reshard_after_backward(False)``;
    a pass that raised halfway (``broken``) must be forgotten as a whole.
    """
    for module in model.modules():
        if not hasattr(module, "_get_fsdp_state"):
            continue
        if broken:
            _forget_pass(module)
        module.reshard()  # type: ignore[operator]


def _forget_pass(module: Any) -> None:
    """After a pass that raised: FSDP2's own recovery (torch 2.13 on) and the gradients that it leaves unreduced."""
    state = module._get_fsdp_state()
    if state._is_root and hasattr(module, "reset_iter_state"):
        module.reset_iter_state()
    for group in getattr(state, "_fsdp_param_groups", ()):
        for held in group.fsdp_params:
            if getattr(held, "_unsharded_param", None) is not None:
                held._unsharded_param.grad = None
            held.unsharded_accumulated_grad = None


def laid_out_like(value: Tensor, param: Tensor) -> Tensor:
    """A copy of ``value``, which every process has or all have pieces of, spread as ``param`` is."""
    if not is_sharded(param):
        return (value.full_tensor() if is_sharded(value) else value).to(param.device, copy=True)  # type: ignore[attr-defined]
    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    if not is_sharded(value):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(param.device, copy=True), mesh, placements)
    return value.redistribute(mesh, placements).to(param.device, copy=True)  # type: ignore[attr-defined]


def alike_everywhere(value: Tensor, like: Tensor) -> Tensor:
    """``value``, which every process has made alike, spread as ``like`` is: each takes its piece, nothing is sent."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(mesh, placements)


def _piece(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[attr-defined]


def _split_dims(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions of the mesh over which the tensor is split; over the others it is repeated."""
    placements = tensor.placements  # type: ignore[attr-defined]
    if any(p.is_partial() for p in placements):
        raise ValueError("a gradient holds unreduced partial sums over processes; expected sharded or replicated ones")
    return tuple(i for i, p in enumerate(placements) if p.is_shard())
