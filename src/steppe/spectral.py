"""The direction of steepest ascent where a matrix is measured by its largest singular value, as Muon measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steppe._algebra import as_real, norm, ratio, wide
from steppe._parts import check_count
from steppe._shards import alike_everywhere, is_sharded
from steppe.ascent import Direction, Grads, Memory, Scale

MUON = (3.4445, -4.7750, 2.0315)  # of Newton-Schulz, as in torch.optim.Muon


@dataclass(frozen=True)
class Spectral(Direction):
    """Of a matrix G = U S V^T its polar factor U V^T (complex: U V^H); of a vector or a number g / ||g||.

    Of all perturbations whose matrices have no singular value above rho, and whose vectors are no longer, rho v raises
    the loss most, to first order. The length of v is its own: ``Ascent(rho, Spectral(), scope="none")``. A tensor of
    more dimensions is a matrix with a row for each output. A zero gradient gives zero.

    Args:
        iterations: of Newton-Schulz, in the gradient's own type; 5 is Muon's, which leaves singular values
            between about 0.7 and 1.2 (smaller ones of G at less). None: the exact factor, by a singular value
            decomposition, for which CUDA waits; directions in which G is zero to rounding have none.

    Cost: three products of matrices an iteration. A tensor that is spread over
    processes is gathered for it, one at a time.
    """

    iterations: int | None = 5
    unitless: ClassVar[bool] = True
    sees_complex: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the range."""
        if self.iterations is not None:
            check_count("iterations", self.iterations)

    def __call__(self, grads: Grads, memory: Memory, scale: Scale = 1.0) -> tuple[Grads, Memory]:
        """The factors, and no memory."""
        return {name: self._steepest(g) for name, g in grads.items()}, {}

    def _steepest(self, grad: Tensor) -> Tensor:
        whole = grad.full_tensor() if is_sharded(grad) else grad  # type: ignore[attr-defined]
        if whole.ndim < 2:
            steepest = _unit(whole)
        else:
            matrix = whole.flatten(1)
            factor = _polar(matrix) if self.iterations is None else _newton_schulz(matrix, self.iterations)
            steepest = factor.reshape(whole.shape)
        return alike_everywhere(steepest, grad)


def _unit(tensor: Tensor) -> Tensor:
    # 1 / ||g|| of a small gradient is beyond what 16 bits hold.
    return (tensor.to(wide(tensor.dtype)) * ratio(1.0, norm([as_real(tensor)]))).to(tensor.dtype)


def _newton_schulz(matrix: Tensor, iterations: int) -> Tensor:
    a, b, c = MUON
    x = _unit(matrix.mH.resolve_conj() if matrix.shape[0] > matrix.shape[1] else matrix)
    for _ in range(iterations):
        gram = x @ x.mH
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mH.resolve_conj() if matrix.shape[0] > matrix.shape[1] else x


def _polar(matrix: Tensor) -> Tensor:
    whole = matrix.to(wide(matrix.dtype))
    finite = as_real(whole).nan_to_num(0.0, 0.0, 0.0)
    u, s, v = torch.linalg.svd(torch.view_as_complex(finite) if whole.is_complex() else finite, full_matrices=False)
    there = s > s[:1] * max(matrix.shape) * torch.finfo(s.dtype).eps
    # svd raises where a scaled loss overflowed; what is not finite stays so, for the GradScaler to skip the step.
    return ((u * there) @ v + 0 * whole).to(matrix.dtype)
