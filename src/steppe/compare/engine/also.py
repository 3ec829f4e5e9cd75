"""What flat minima are said to buy, measured on the final weights of a run: calibration, rounded weights, noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from steppe._backup import SavedWeights
from steppe.compare.data.also import BITS, NOISES, deviation
from steppe.compare.data.examples import Split, Task, generator
from steppe.compare.data.metrics import METRICS
from steppe.compare.engine import measure

_NOISE_SEED = 0xA150


def figures(model: nn.Module, task: Task, wanted: Sequence[str], seed: int) -> dict[str, float]:
    """The figures that were asked for, on the test set; the weights come back bit for bit.

    Methods compared with the same seed see the same noise.
    """
    found: dict[str, float] = {}
    if "calibration" in wanted:
        found |= measure.metrics(model, task.test, [METRICS["ece"]], task.outputs)
    if "quantized" in wanted:
        for bits in BITS:
            with rounded(model, bits):
                found[f"bits_{bits}"] = _judged(model, task, task.test)
    if "noise" in wanted:
        for size in NOISES:
            found[f"noise_{size:g}"] = _judged(model, task, noisy(task, size, seed))
    return found


def _judged(model: nn.Module, task: Task, split: Split) -> float:
    (value,) = measure.metrics(model, split, task.measured[:1], task.outputs).values()
    return value


@contextmanager
def rounded(model: nn.Module, bits: int) -> Iterator[None]:
    """`model` with every weight of two or more dimensions rounded, and back.

    Symmetric, one scale for each output channel c (first dimension): with n = 2^(bits-1) - 1 and s = max|w_c| / n,
    w_c becomes s round(w_c / s), one of 2n + 1 values.
    """
    weights = [w for w in model.parameters() if w.dim() > 1 and w.is_floating_point()]
    saved = SavedWeights(weights)
    try:
        with torch.no_grad():
            for weight in weights:
                weight.copy_(quantized(weight, bits))
        yield
    finally:
        saved.back()


def quantized(weight: Tensor, bits: int) -> Tensor:
    """A weight rounded to a number of bits; computed in double precision, ties to even."""
    levels = 2 ** (bits - 1) - 1
    exact = weight.detach().double()
    scale = exact.abs().flatten(1).amax(1) / levels
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).reshape(-1, *[1] * (weight.dim() - 1))
    return (scale * torch.round(exact / scale)).to(weight.dtype)


def noisy(task: Task, size: float, seed: int) -> Split:
    """The test set with normal noise on every number of its inputs, drawn from (seed, size) alone."""
    rng = generator(_NOISE_SEED, seed, round(1000 * size))
    sigma = size * deviation(task.train.x)

    def with_noise(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            return leaf
        return leaf + sigma * torch.randn(leaf.shape, generator=rng, dtype=leaf.dtype).to(leaf.device)

    return replace(task.test, x=pytree.tree_map(with_noise, task.test.x))
