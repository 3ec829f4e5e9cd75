"""Copies of the weights, and the way back into the same storage, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_

import torch
from torch import Tensor, nn

from steppe._algebra import alike, copy_alike_
from steppe._shards import local

BACKUPS = ("device", "host")

MANY, SMALL = 4, 2**15
"""From so many weights on, those of up to so many bytes are copied as pieces of one vector, which is cheaper."""

Row = tuple[list[int], list[Tensor], list[int]]


class Rows:
    """Small weights as the pieces of one vector for each device and dtype, which one call copies.

    Made once, and good as long as these weights lie where they did.

    Attributes:
        weights: all of them.
        rows: which weights, their values in one dimension, their sizes. rest: the weights that are no pieces.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights, self._at = weights, _at(weights)
        small = [w for w in weights if _is_small(w)]
        self.rest = [w for w in weights if not _is_small(w)]
        places = {id(w): i for i, w in enumerate(weights)}
        self.rows: list[Row] = [
            ([places[id(w)] for w in part], [w.detach().view(-1) for w in part], [w.numel() for w in part])
            for part, _ in alike(small, small)
        ] if small else []

    def fit(self, weights: list[Tensor]) -> bool:
        """Whether they are of these, which lie where they did."""
        same = len(weights) == len(self.weights) and all(map(is_, weights, self.weights))
        return same and _at(weights) == self._at

    def in_place(self) -> bool:
        """Whether they lie where they did: a forward may have set ``weight.data`` to another tensor."""
        return list(map(Tensor.data_ptr, self.weights)) == self._at[0]

    def in_order(self, copies: Sequence[Tensor], rest: Iterable[Tensor]) -> list[Tensor]:
        """The copies of all weights, given those of the rows and of the rest."""
        found = {
            i: piece.view(self.weights[i].shape)
            for (places, _, sizes), copy in zip(self.rows, copies, strict=True)
            for i, piece in zip(places, copy.split(sizes), strict=True)
        }
        others = iter(rest)
        return [found[i] if i in found else next(others) for i in range(len(self.weights))]


class SavedWeights:
    """A copy of weights that goes back into the same storage, bit for bit.

    Args:
        weights: their local pieces are copied.
        backup: where the copy lies. ``"device"``: beside the weights; ``"host"``: in the host's memory, pinned where
            the weights are on a CUDA device, so that both ways are queued on the stream and nobody waits.
        rows: of these very weights; the copy then lies on the device.
    """

    def __init__(self, weights: Iterable[Tensor], backup: str = "device", rows: Rows | None = None) -> None:
        with torch.no_grad():
            self._copy(weights, backup, rows)

    def _copy(self, weights: Iterable[Tensor], backup: str, rows: Rows | None) -> None:
        self._rows = rows
        here = local(weights) if rows is None else rows.rest
        self._row_copies = [torch.cat(pieces) for _, pieces, _ in rows.rows] if rows is not None else []
        self._copies = [torch.empty_like(w) for w in here] if backup == "device" else [_on_host(w) for w in here]
        self._parts = alike(here, self._copies) if here else []
        for there, copies in self._parts:
            copy_alike_(copies, there)

    @property
    def copies(self) -> list[Tensor]:
        """The saved weights, in their order: their local pieces."""
        return self._copies if self._rows is None else self._rows.in_order(self._row_copies, self._copies)

    @torch.no_grad()
    def back(self) -> None:
        """Copy back; by copy and never by subtraction, so that no rounding and no inf or NaN stays."""
        for weights, copies in self._parts:
            copy_alike_(weights, copies)
        for (_, pieces, sizes), copy in zip(self._rows.rows if self._rows else (), self._row_copies, strict=True):
            torch.split_with_sizes_copy(copy, sizes, out=pieces)
        if self._rows is not None and not self._rows.in_place():
            for weight, saved in zip(self._rows.weights, self.copies, strict=True):
                weight.copy_(saved)


def _on_host(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)


def _at(weights: list[Tensor]) -> tuple[list[int], list[int], bool]:
    """Where they lie, how long they are, and whether all are in one piece: the same means the same memory."""
    whole = all(map(Tensor.is_contiguous, weights))
    return list(map(Tensor.data_ptr, weights)), list(map(Tensor.numel, weights)), whole


def _is_small(weight: Tensor) -> bool:
    plain = type(weight) in (Tensor, nn.Parameter) and weight.layout is torch.strided
    return plain and weight.is_contiguous() and weight.nbytes <= SMALL
