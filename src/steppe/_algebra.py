"""Norms, inner products and scalings over lists of tensors, without host-device synchronisation.

Every function names its scope: a list is one vector unless the name says "each". Norms and inner products of bf16 and
fp16 tensors accumulate in fp32; results are 0-dim tensors on the device of the first tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
_HALF = (torch.float16, torch.bfloat16)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _HALF else dtype


def _gathered(scalars: list[Tensor]) -> Tensor:
    device = scalars[0].device
    dtype = torch.float64 if any(s.dtype == torch.float64 for s in scalars) else scalars[0].dtype
    return torch.stack([s.to(device=device, dtype=dtype) for s in scalars])


def norm_each(tensors: Tensors) -> list[Tensor]:
    """Euclidean norm of each tensor by itself."""
    if not tensors:
        return []
    kinds = {t.dtype for t in tensors}
    if len(kinds) > 1:
        return [torch.linalg.vector_norm(t, dtype=_wide(t.dtype)) for t in tensors]
    return list(torch._foreach_norm(list(tensors), 2, dtype=_wide(kinds.pop())))


def norm(tensors: Tensors) -> Tensor:
    """Euclidean norm of all tensors as one vector; 0 for an empty list."""
    return joined(norm_each(tensors))


def joined(norms: list[Tensor]) -> Tensor:
    """Norm of a vector from the norms of its pieces."""
    return torch.linalg.vector_norm(_gathered(norms)) if norms else torch.zeros(())


def inner(a: Tensors, b: Tensors) -> Tensor:
    """Inner product of two lists, each as one vector; 0 for empty lists."""
    if not a:
        return torch.zeros(())
    wide = [(x.to(_wide(x.dtype)), y.to(_wide(y.dtype))) for x, y in zip(a, b, strict=True)]
    return _gathered([(x * y).sum() for x, y in wide]).sum()


def ratio(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0, NaN or so small that the quotient overflows."""
    quotient = numerator / denominator
    return torch.where((denominator > 0) & ~quotient.isinf(), quotient, torch.zeros_like(quotient))


def scale_(tensors: list[Tensor], factor: Tensor | float) -> None:
    """``x *= factor`` for every tensor; a 0-dim factor stays on its device."""
    for part, f in _by_device(tensors, factor):
        torch._foreach_mul_(part, f)


def scale_each_(tensors: list[Tensor], factors: list[Tensor]) -> None:
    """``x_i *= factor_i`` with one 0-dim factor per tensor."""
    if tensors:
        torch._foreach_mul_(tensors, [f.to(x.device) for f, x in zip(factors, tensors, strict=True)])


def multiply_(tensors: list[Tensor], others: list[Tensor]) -> None:
    """``x_i *= y_i``."""
    if tensors:
        torch._foreach_mul_(tensors, others)


def add_scaled_(tensors: list[Tensor], others: list[Tensor], factor: Tensor | float) -> None:
    """``x_i += factor * y_i``; needs a temporary of the size of ``others`` when the factor is a tensor."""
    if not tensors:
        return
    if isinstance(factor, Tensor):
        others = [y * factor.to(y.device) for y in others]
        torch._foreach_add_(tensors, others)
    else:
        torch._foreach_add_(tensors, others, alpha=factor)


def _by_device(tensors: list[Tensor], factor: Tensor | float) -> list[tuple[list[Tensor], Tensor | float]]:
    if not tensors:
        return []
    if not isinstance(factor, Tensor) or all(t.device == factor.device for t in tensors):
        return [(tensors, factor)]
    devices = {t.device for t in tensors}
    return [([t for t in tensors if t.device == d], factor.to(d)) for d in devices]
