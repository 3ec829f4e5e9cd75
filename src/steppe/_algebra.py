"""Norms, inner products and scalings over lists of tensors, without host-device synchronisation.

Every function names its scope: a list is one vector unless the name says "each". Norms and inner products of bf16 and
fp16 tensors accumulate in fp32 and run over all shards of a DTensor; results are 0-dim tensors on the device of the
first tensor. Elementwise functions work on what lies in this process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from steppe._shards import all_here, local, summed

P = ParamSpec("P")
R = TypeVar("R")
Tensors = Sequence[Tensor]
_HALF = (torch.float16, torch.bfloat16)
_DTYPE, _DEVICE = attrgetter("dtype"), attrgetter("device")


def without_graph(function: Callable[P, R]) -> Callable[P, R]:
    """``torch.no_grad()`` of a function that every step calls, in a tenth of the calls."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        before = torch.is_grad_enabled()
        try:
            try:
                torch._C._set_grad_enabled(False)
                return function(*args, **kwargs)
            finally:
                torch._C._set_grad_enabled(before)
        finally:  # again, when Ctrl-C falls into it
            torch._C._set_grad_enabled(before)

    return call


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as the pairs of real numbers in its storage, which is how every method sees it."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in."""
    return torch.float32 if dtype in _HALF else dtype


def norm_each(tensors: Tensors) -> list[Tensor]:
    """Euclidean norm of each tensor by itself."""
    if all_here(tensors):
        return _norms_here(tensors)
    return [s.sqrt() for s in summed([n.square() for n in _norms_here(local(tensors))], tensors)]


def norm(tensors: Tensors) -> Tensor:
    """Euclidean norm of all tensors as one vector; 0 for an empty list."""
    return joined(norm_each(tensors))


def joined(norms: list[Tensor]) -> Tensor:
    """Norm of a vector from the norms of its pieces."""
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(_gathered(norms)) if norms else torch.zeros(())


def inner(a: Tensors, b: Tensors) -> Tensor:
    """Inner product of two lists, each as one vector; 0 for empty lists."""
    if not a:
        return torch.zeros(())
    pairs = zip(local(a), local(b), strict=True)
    return _gathered(summed([(x.to(wide(x.dtype)) * y.to(wide(y.dtype))).sum() for x, y in pairs], a)).sum()


def ratio(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0, NaN or so small that the quotient overflows."""
    if not isinstance(numerator, Tensor):  # nothing else makes it NaN or inf
        return (denominator.reciprocal() * numerator).nan_to_num_(0.0, 0.0, 0.0)  # what torch makes of /, bit for bit
    quotient = numerator / denominator
    return torch.where((denominator > 0) & ~quotient.isinf(), quotient, torch.zeros_like(quotient))


def scale_(tensors: Iterable[Tensor], factor: Tensor | float) -> None:
    """``x *= factor`` for every tensor; a 0-dim factor stays on its device."""
    for part, f in _by_device(local(tensors), factor):
        torch._foreach_mul_(part, f)


def scale_each_(tensors: Iterable[Tensor], factors: list[Tensor]) -> None:
    """``x_i *= factor_i`` with one 0-dim factor per tensor."""
    multiply_(here := local(tensors), [f.to(x.device) for f, x in zip(factors, here, strict=True)])


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def nothing_unless_(keep: Tensor, tensors: Tensors) -> None:
    """All zeros where ``keep``, 0-dim, is false; nobody waits for a device."""
    if keep.device.type == "cpu":
        if not keep:
            torch._foreach_zero_(local(tensors))
        return
    bits_unless_(keep, local(tensors))


def bits_unless_(keep: Tensor, tensors: Tensors) -> None:
    """The same in one call for all tensors of a kind.

    Their bits times 0 are 0 where a number would stay NaN, and times 1 they are what they were.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.device, _BITS[tensor.element_size()]), []).append(tensor)
    for (device, bits), some in alike.items():
        torch._foreach_mul_([t.view(bits) for t in some], keep.to(device, bits))


def multiply_(tensors: Iterable[Tensor], others: Iterable[Tensor]) -> None:
    """``x_i *= y_i``."""
    if here := local(tensors):
        torch._foreach_mul_(here, local(others))


def add_scaled_(tensors: Iterable[Tensor], others: Iterable[Tensor], factor: Tensor | float) -> None:
    """``x_i += factor * y_i``; needs a temporary of the size of ``others`` when the factor is a tensor."""
    here, there = local(tensors), local(others)
    if not here:
        return
    if not isinstance(factor, Tensor):
        torch._foreach_add_(here, there, alpha=factor)
    elif set(map(_DEVICE, there)) == {factor.device}:
        torch._foreach_add_(here, torch._foreach_mul(there, factor))
    else:
        torch._foreach_add_(here, [y * factor.to(y.device) for y in there])


def copy_(to: Tensors, source: Tensors) -> None:
    """``x_i <- y_i``, in one call for each device and dtype; queued where a CUDA device is at one end."""
    for xs, ys in alike(to, source):
        copy_alike_(xs, ys)


def copy_alike_(to: list[Tensor], source: list[Tensor]) -> None:
    """The same for tensors of one device and dtype on each side."""
    if to:
        torch._foreach_copy_(to, source, non_blocking=to[0].is_cuda or source[0].is_cuda)


def alike(a: Tensors, b: Tensors) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Pairs of lists of one length in parts, each of one device and dtype in its first list."""
    if len(a) == len(b) and len(set(map(_DTYPE, a))) <= 1 and len(set(map(_DEVICE, a))) <= 1:
        return [(list(a), list(b))]
    parts: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for x, y in zip(a, b, strict=True):
        xs, ys = parts.setdefault((x.device, x.dtype), ([], []))
        xs.append(x)
        ys.append(y)
    return list(parts.values())


def cloned(tensors: Tensors, sign: int = 1) -> list[Tensor]:
    """A copy of every tensor, with one call for all copies; ``sign``: -1 turns them round in the same call."""
    if sign < 0 and tensors and all_here(tensors):
        return list(torch._foreach_neg(list(tensors)))
    new = [torch.empty_like(t) for t in tensors]
    copy_(local(new), local(tensors))
    if sign < 0:
        scale_(new, sign)
    return new


def _norms_here(tensors: Tensors) -> list[Tensor]:
    kinds = set(map(_DTYPE, tensors))
    if len(kinds) == 1:
        return list(torch._foreach_norm(list(tensors), 2, dtype=wide(kinds.pop())))
    norms = {kind: iter(_norms_here([t for t in tensors if t.dtype == kind])) for kind in kinds}
    return [next(norms[t.dtype]) for t in tensors]


def _gathered(scalars: list[Tensor]) -> Tensor:
    """Of more than one dtype, float64 where any is that."""
    try:
        return torch.stack(scalars)
    except RuntimeError:  # of several devices
        return torch.stack([s.to(scalars[0].device) for s in scalars])


def _by_device(tensors: list[Tensor], factor: Tensor | float) -> list[tuple[list[Tensor], Tensor | float]]:
    if not tensors:
        return []
    devices = set(map(_DEVICE, tensors))
    if not isinstance(factor, Tensor) or devices == {factor.device}:
        return [(tensors, factor)]
    return [([t for t in tensors if t.device == d], factor.to(d)) for d in devices]
