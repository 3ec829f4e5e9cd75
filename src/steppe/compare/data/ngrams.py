"""A language model that only counts: n-grams of bytes with interpolated Kneser-Ney smoothing."""

from __future__ import annotations

import torch
from torch import Tensor

BYTES = 256


class Counts:
    """How often each byte follows the `order` - 1 before it, smoothed; a baseline that needs no training.

    Interpolated Kneser-Ney (Chen and Goodman, 1999): of every count c a discount d = n1 / (n1 + 2 n2) is taken, with
    n1 and n2 the n-grams seen once and twice (1/2 where one of them is none), and given to the next shorter context;
    shorter contexts count the different bytes that stood before them. The shortest falls back on all bytes alike.

    Args:
        text: the bytes (time,) that are counted; none is zero, which stands for what is before a window.
        order: the longest n-gram, at most 7.
    """

    def __init__(self, text: Tensor, order: int = 5) -> None:
        text = text.long()
        self._tables: list[tuple[Tensor, Tensor, float]] = []
        for n in range(1, min(order, len(text)) + 1):
            grams, times = torch.unique(_grams(text, n), return_counts=True)
            if n < min(order, len(text)):
                longer = torch.unique(_grams(text, n + 1)) % BYTES**n
                grams, times = torch.unique(longer, return_counts=True)
            once, twice = int((times == 1).sum()), int((times == 2).sum())
            self._tables.append((grams, times.float(), once / (once + 2 * twice) if once and twice else 0.5))

    def __call__(self, x: Tensor) -> Tensor:
        """Logarithms of probabilities (examples, time, 256) of the byte after each of `x` (examples, time)."""
        rows = x.numel()
        found = torch.full((rows, BYTES), 1 / BYTES, device=x.device)
        context = torch.zeros(rows, dtype=torch.long, device=x.device)
        for back, (grams, times, discount) in enumerate(self._tables):
            if back:
                earlier = torch.nn.functional.pad(x, (back - 1, 0))[:, : x.shape[1]]
                context = context + earlier.flatten() * BYTES ** (back - 1)
            grams, times = grams.to(x.device), times.to(x.device)
            first, end = (torch.searchsorted(grams, (context + more) * BYTES) for more in (0, 1))
            kinds = end - first
            row = torch.arange(rows, device=x.device).repeat_interleave(kinds)
            within = torch.arange(len(row), device=x.device) - (kinds.cumsum(0) - kinds)[row]
            at = first[row] + within
            total = torch.zeros(rows, device=x.device).index_add_(0, row, times[at])
            found *= torch.where(kinds > 0, discount * kinds / total.clamp_min(1), 1.0)[:, None]
            found[row, grams[at] % BYTES] += (times[at] - discount) / total[row]
        return found.log().unflatten(0, x.shape)


def _grams(text: Tensor, n: int) -> Tensor:
    """Every n bytes in a row as one whole number, the first byte the most significant."""
    windows = text.unfold(0, n, 1)
    return (windows * BYTES ** torch.arange(n - 1, -1, -1, device=text.device)).sum(1)
