"""The move of BAR for many pairs at once: comparisons stay on the device, and factors are scaled in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from steppe._algebra import wide
from steppe._rounding import add_, has_half
from steppe._shards import is_sharded, local
from steppe.lora.balance import side_norms
from steppe.lora.pairs import Pair

Number = float | Tensor
SMALL = 4096
"""Elements of a tensor up to which copying it is cheaper than a norm of its own."""


class Bundle:
    """Pairs that move together: one device, one dtype, the same groups of the optimizer, sides of as many tensors."""

    def __init__(self, pairs: Sequence[Pair], groups: Sequence[dict[str, Any]]) -> None:
        self.pairs, self.groups = pairs, groups
        self.x = [t for p in pairs for t in p.x]
        self.y = [t for p in pairs for t in p.y]
        self.tensors = [*self.x, *self.y]
        self.sharded = any(map(is_sharded, self.tensors))
        self.small = _sizes(pairs[0]) is not None

    def rate(self) -> Number:
        """The least learning rate among the groups."""
        rates = list({id(g): g["lr"] for g in self.groups}.values())
        tensors = [r for r in rates if isinstance(r, Tensor)]
        if not tensors:
            return min(map(float, rates))
        return torch.stack([torch.as_tensor(r, device=tensors[0].device).reshape(()) for r in rates]).min()

    def with_gradients(self) -> Bundle | None:
        """The pairs of which every tensor has a gradient; None if there are none."""
        if not any(t.grad is None for t in self.tensors):
            return self
        left = [p for p in self.pairs if all(t.grad is not None for t in (*p.x, *p.y))]
        return Bundle(left, self.groups) if left else None

    def move(self, rule: str, a: Number, rounding: str, seed: int, step: int) -> None:
        """Scale the sides of every pair by 1 + a and 1 - a; the pairs must have gradients."""
        g_x, g_y = self._norms([t.grad for t in self.x], [t.grad for t in self.y])  # type: ignore[misc]
        x, y = (g_x, g_y) if rule == "nbar" else self._norms(self.x, self.y)
        grows = torch.where(x >= y, 1.0, -1.0) if rule == "nbar" else torch.where(x >= y, -1.0, 1.0)
        length = g_x + g_y
        # NaN and inf: a step that was skipped, or is beyond help; 0: the pair took no part.
        if isinstance(a, Tensor) and a.device.type != "cpu":
            a = a.to(x.device)
        change = torch.where((length > 0) & (length < math.inf), grows, 0.0).to(x.dtype) * a
        each = (len(self.x) // len(self.pairs), len(self.y) // len(self.pairs))
        sides = (change.repeat_interleave(each[0]), -change.repeat_interleave(each[1]))
        self._scale(torch.cat(sides), rounding, seed, step)

    def _norms(self, x: Sequence[Tensor], y: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Norms of the sides x and y of every pair, each of shape (pairs,)."""
        count = len(self.pairs)
        if self.small:
            return _row_norms(x, count), _row_norms(y, count)
        if len(x) != len(y):
            return side_norms(x, count), side_norms(y, count)
        first, second = side_norms([*x, *y], 2 * count).view(2, -1)
        return first, second

    def _scale(self, change: Tensor, rounding: str, seed: int, step: int) -> None:
        """``t *= 1 + change`` for each tensor, computed in the dtype of ``change``."""
        here = local(self.tensors) if self.sharded else self.tensors
        if not has_half(self.tensors[:1]):
            torch._foreach_mul_(here, (1 + change).unbind())
            return
        sizes = [t.numel() for t in here]
        flat = torch.cat([t.reshape(-1) for t in here])
        # One element after the other, because each tensor has a factor of its own; fp32, because 1 + a is 1 in bf16.
        every = torch.cat([c.expand(n) for c, n in zip(change.unbind(), sizes, strict=True)])
        add_([flat], [flat.to(change.dtype) * every], rounding, seed, step)
        torch._foreach_copy_(here, [f.view_as(t) for f, t in zip(flat.split(sizes), here, strict=True)])


def bundles(pairs: Sequence[Pair], groups: Sequence[dict[str, Any]]) -> list[Bundle]:
    """The pairs in bundles, in the order of the pairs, which is the same in every process."""
    of = {p: i for i, g in enumerate(groups) for p in g["params"]}
    together: dict[Any, list[Pair]] = {}
    for pair in pairs:
        tensors = (*pair.x, *pair.y)
        kinds = {(t.device, t.dtype) for t in tensors}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
            raise ValueError(f"pair {pair.name!r} holds {found}; expected one dtype and one device for both sides")
        key = (kinds.pop(), len(pair.x), _sizes(pair), tuple(of[t] for t in tensors))
        together.setdefault(key, []).append(pair)
    return [Bundle(alike, [groups[i] for i in key[3]]) for key, alike in together.items()]


def _sizes(pair: Pair) -> tuple[int, ...] | None:
    """Elements of every tensor, if all are small and whole: pairs of the same sizes can be seen as rows of a matrix."""
    tensors = (*pair.x, *pair.y)
    if any(t.numel() > SMALL or is_sharded(t) for t in tensors):
        return None
    return tuple(t.numel() for t in tensors)


def _row_norms(tensors: Sequence[Tensor], count: int) -> Tensor:
    rows = _flatten_dense_tensors(tensors).view(count, -1)
    return torch.linalg.vector_norm(rows, dim=1, dtype=wide(rows.dtype))
