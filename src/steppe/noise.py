"""A random direction: Gaussian noise on the scale of each filter, made before the pass, which is then the only one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steppe._algebra import as_real, wide
from steppe._parts import check
from steppe._rounding import generator
from steppe._shards import alike_everywhere
from steppe.ahead import Ahead
from steppe.ascent import Grads, Memory, Scale


@dataclass(frozen=True)
class Noise(Ahead):
    """Noise as large as the filter it falls on (RWP):  v_i = ||w_i|| z_i / sqrt(1 + eta F_i),  z_i standard normal.

    w_i is row i of a tensor: all weights of one output. A vector (a bias, a scale) is one filter as a whole. z is drawn
    from (seed, step, the parameter's name): every micro-batch and every process of a step has the same, a resume needs
    no generator's state, and torch's own generators are not touched. CPU and CUDA draw different numbers.

    The length of v is that of the noise, not 1: to be used with ``Ascent(rho, Noise(), scope="none")``, eps = rho v.

    Args:
        eta: >= 0; 0 is RWP. Above it (ARWP) less noise falls where the gradients have been large: F <- decay F + d^2,
            moved by every real step with the gradient d that it is handed, summed over a row; of a vector, each entry
            by itself. In units of the loss: a loss 10 times as large has 100 times the F.
        decay: of F, in [0, 1).

    Cost: one draw of as many numbers as there are weights; with ``eta`` one buffer of their size (fp32 for bf16 and
    fp16) between steps. Of a tensor that is spread over processes each draws the whole and keeps its own piece.
    """

    eta: float = 0.0
    decay: float = 0.99

    def __post_init__(self) -> None:
        """Check the ranges."""
        check("eta", self.eta, 0.0)
        check("decay", self.decay, 0.0, 1.0)
        if self.decay == 1:
            raise ValueError("decay=1 was given; expected a number below 1, as F would grow without end")

    def vector(self, params: Grads, optimizer: Any, memory: Memory, step: int, seed: int) -> Grads:
        """The noise of this step."""
        squares: Grads = memory.get("squares", {})
        return {name: self._noise(name, p, squares.get(name), step, seed) for name, p in params.items()}

    def _noise(self, name: str, param: Tensor, squares: Tensor | None, step: int, seed: int) -> Tensor:
        weight, matrix = as_real(param), param.ndim > 1
        row = tuple(range(1 if matrix else 0, weight.ndim))
        source = generator(param.device, f"noise:{name}", seed, step)
        drawn = torch.randn(weight.shape, generator=source, device=param.device, dtype=wide(weight.dtype))
        noise = alike_everywhere(drawn.to(weight.dtype), weight)
        noise.mul_(torch.linalg.vector_norm(weight, dim=row, keepdim=True, dtype=wide(weight.dtype)))
        if squares is not None and self.eta:
            summed = squares.sum(row, keepdim=True) if matrix else squares
            noise.div_((1 + self.eta * summed).sqrt_())
        return noise

    @property
    def follows(self) -> bool:
        """Whether F is kept."""
        return self.eta > 0

    def after(self, grads: Grads, memory: Memory, scale: Scale = 1.0) -> Memory:
        """F with the square of the gradient, without its loss scale."""
        if not self.eta:
            return {}
        old: Grads = memory.get("squares", {})
        fresh = {k: (g.to(wide(g.dtype)) / scale).square_() for k, g in grads.items()}
        return {"squares": old | {k: f.add_(old[k], alpha=self.decay) if k in old else f for k, f in fresh.items()}}

    def blank(self, params: Grads) -> Memory:
        """Zeros, if F is kept."""
        if not self.eta:
            return {}
        return {"squares": {k: torch.zeros_like(p, dtype=wide(p.dtype)) for k, p in params.items()}}
