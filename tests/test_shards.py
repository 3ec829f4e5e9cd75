"""Norms and products of tensors that are spread over processes equal those of the whole tensors."""

from __future__ import annotations

from typing import Any

import torch
from tests.loops import distributed as d
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from steppe._algebra import inner, norm, norm_each, scale_
from steppe._backup import SavedWeights
from steppe._rounding import displacement
from steppe._shards import is_sharded, laid_out_like, local, summed

SHAPES = [(7, 5), (3,), (1,), (8, 4), (5, 2)]


def _tensors(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def _spread(tensors: list[Tensor]) -> list[Tensor]:
    """Uneven and empty shards, a repeated tensor, HSDP's two dimensions, columns, and one left plain."""
    flat = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    a, b, c, e, plain = tensors
    return [
        distribute_tensor(a, flat, [Shard(0)]),
        distribute_tensor(b, flat, [Shard(0)]),  # one of four ranks has nothing of it
        distribute_tensor(c, flat, [Replicate()]),
        distribute_tensor(e, square, [Replicate(), Shard(1)]),
        plain,
    ]


def _algebra() -> dict[str, Any]:
    whole = _tensors()
    spread = _spread(whole)
    half = _spread(_tensors(torch.bfloat16))
    saved = SavedWeights(spread)
    scale_(spread, 3.0)
    moved = displacement(spread, saved.copies)
    tripled = [d.whole(t) for t in spread]
    saved.back()
    return {
        "norm": norm(spread),
        "each": norm_each(spread),
        "inner": inner(spread, [t * 2 for t in spread]),
        "half": norm(half),
        "tripled": tripled,
        "moved": moved,
        "back": [torch.equal(d.whole(s), w) for s, w in zip(spread, whole, strict=True)],
        "laid": [_laid(w, s) for w, s in zip(whole, spread, strict=True)],
        "partial": _partial(),
    }


def _laid(whole: Tensor, spread: Tensor) -> bool:
    """To shards and back."""
    there = laid_out_like(whole, spread)
    back = laid_out_like(there, whole)
    again = laid_out_like(there, spread)
    return is_sharded(there) == is_sharded(spread) and torch.equal(back, whole) and torch.equal(d.whole(again), whole)


def _partial() -> str:
    unreduced = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (4,)), [Partial()])
    try:
        norm([unreduced])
    except ValueError as error:
        return str(error)
    return "accepted"


def test_algebra_over_shards_is_that_of_the_whole() -> None:
    whole = _tensors()
    for rank in d.run(4, _algebra):
        torch.testing.assert_close(rank["norm"], norm(whole), rtol=1e-14, atol=0)
        torch.testing.assert_close(rank["each"], norm_each(whole), rtol=1e-14, atol=0)
        torch.testing.assert_close(rank["inner"], 2 * norm(whole) ** 2, rtol=1e-14, atol=0)
        assert rank["half"].dtype == torch.float32
        torch.testing.assert_close(rank["half"], norm(_tensors(torch.bfloat16)), rtol=1e-6, atol=0)
        assert all(torch.equal(a, 3 * b) for a, b in zip(rank["tripled"], whole, strict=True))
        torch.testing.assert_close(rank["moved"].double(), 2 * norm(whole), rtol=1e-6, atol=0)
        assert all(rank["back"]) and all(rank["laid"])
        assert "unreduced partial sums" in rank["partial"]


def test_plain_tensors_pass_through() -> None:
    tensors = _tensors()
    values = [t.sum() for t in tensors]
    assert not any(is_sharded(t) for t in tensors)
    assert all(a is b for a, b in zip(local(tensors), tensors, strict=True))
    assert all(a is b for a, b in zip(summed(list(values), tensors), values, strict=True))
    copy = laid_out_like(tensors[0], tensors[0])
    assert torch.equal(copy, tensors[0]) and copy.data_ptr() != tensors[0].data_ptr()
