"""Adding a perturbation to weights of few bits, where half of it may fall below one unit in the last place.

At usual radii an entry of eps is smaller than the spacing of bf16 numbers near w, so w + eps rounds back to w. Rounding
up or down at random, with the chance that makes the mean right, keeps E[displacement] = eps.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from operator import attrgetter

import torch
from torch import Tensor

from steppe._algebra import add_scaled_, inner, joined, norm, ratio
from steppe._shards import local, summed

ROUNDINGS = ("nearest", "stochastic")
_HALF = frozenset((torch.float16, torch.bfloat16))


def add_(weights: Iterable[Tensor], eps: Iterable[Tensor], rounding: str, seed: int, step: int) -> None:
    """``w += eps``; with "stochastic", half-precision weights round up or down at random, drawn from (seed, step)."""
    if rounding == "nearest":
        return add_scaled_(weights, eps, 1)
    generators: dict[torch.device, torch.Generator] = {}
    for w, e in zip(local(weights), local(eps), strict=True):
        if w.dtype in _HALF:
            _add_at_random(w, e, generators.setdefault(w.device, generator(w.device, "rounding", seed, step)))
        else:
            w.add_(e)
    return None


def displacement(weights: Iterable[Tensor], before: Iterable[Tensor]) -> Tensor:
    """||w - w before||, in fp32: how far the weights really moved."""
    tensors = list(weights)
    here = [norm([_moved(w, b)]).square() for w, b in zip(local(tensors), before, strict=True)]
    return joined([s.sqrt() for s in summed(here, tensors)])


def survived(weights: Iterable[Tensor], before: Iterable[Tensor], eps: Iterable[Tensor]) -> Tensor:
    """<moved, eps> / ||eps||^2: the share of eps along its own direction; a length would count overshoots."""
    wanted = list(eps)
    moved = [_moved(w, b) for w, b in zip(local(weights), before, strict=True)]
    return ratio(inner(wanted, moved), norm(wanted).square())


def _moved(weight: Tensor, before: Tensor) -> Tensor:
    return weight.float() - before.to(weight.device).float()  # the copy may lie on the host


def has_half(weights: Iterable[Tensor]) -> bool:
    """Whether any weight is bf16 or fp16."""
    return not _HALF.isdisjoint(map(attrgetter("dtype"), weights))


def warn_if_lost(share: Tensor) -> None:
    """Say so when rounding ate more than half of the perturbation (reads the device: once per object)."""
    if float(share) < 0.5:
        warnings.warn(
            f"rounding ate the perturbation: of ||eps||, {float(share):.0%} is left in weights of few bits; construct "
            "with rounding='stochastic', raise rho, or keep fp32 weights (autocast)",
            stacklevel=7,
        )


def generator(device: torch.device, purpose: str, seed: int, step: int) -> torch.Generator:
    """A generator of its own for each purpose, seed and step: no state to save, the same on every rank."""
    digest = hashlib.blake2b(f"{purpose}:{seed}:{step}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


def _add_at_random(weight: Tensor, eps: Tensor, generator: torch.Generator) -> None:
    exact = weight.float() + eps.float()
    near = exact.to(weight.dtype)
    rest = exact - near.float()
    toward = torch.copysign(torch.full_like(near, torch.inf), rest.to(near.dtype))
    other = torch.nextafter(near, toward)
    chance = (rest / (other.float() - near.float())).nan_to_num(0.0)
    draws = torch.rand(weight.shape, generator=generator, device=weight.device)
    weight.copy_(torch.where(draws < chance, other, near))
