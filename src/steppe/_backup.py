"""Copies of the weights, and the way back into the same storage, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_, itemgetter

import torch
from torch import Tensor, nn

from steppe._algebra import add_scaled_, alike, cloned, copy_alike_
from steppe._shards import local

BACKUPS = ("device", "host")

MANY, SMALL = 4, 2**15
"""From so many weights on, those of up to so many bytes are taken as pieces of one vector, which is cheaper."""

LENGTH = 2**16
"""Numbers in such a vector: its norm, whose squares are summed in its own type, is as exact as those of the pieces."""

Part = tuple[list[Tensor], list[Tensor]]
Row = tuple[list[int], list[Tensor], list[int]]


class Rows:
    """Small weights as the pieces of one vector for each device and dtype, which one call copies or moves.

    Made once, and good as long as these weights lie where they did.

    Attributes:
        weights: all of them.
        rows: which weights, their values in one dimension, their sizes. rest: the weights that are no pieces.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        self.weights, self._at = weights, _at(weights)
        places = {id(w): i for i, w in enumerate(weights)}
        small = _apart([w for w in weights if _is_small(w)])
        parts = [row for part, _ in alike(small, small) for row in _cut(part) if len(row) > 1] if small else []
        self.rows: list[Row] = [
            ([places[id(w)] for w in part], [w.detach().view(-1) for w in part], [w.numel() for w in part])
            for part in parts
        ]
        self._picks = [itemgetter(*places) for places, _, _ in self.rows]
        pieces = {i for row, _, _ in self.rows for i in row}
        self._others = [i for i in range(len(weights)) if i not in pieces]
        self.rest = [weights[i] for i in self._others]

    def fit(self, weights: list[Tensor]) -> bool:
        """Whether they are of these, which lie where they did."""
        same = len(weights) == len(self.weights) and all(map(is_, weights, self.weights))
        return same and _at(weights) == self._at

    def in_place(self) -> bool:
        """Whether they lie where they did: a forward may have set ``weight.data`` to another tensor."""
        return list(map(Tensor.data_ptr, self.weights)) == self._at[0]

    def joined(self, tensors: Sequence[Tensor], fresh: bool = False) -> list[Tensor]:
        """Tensors that are like the weights, as fewer: a new vector for each row, and the rest, copied if ``fresh``."""
        rows = [torch._C._nn.flatten_dense_tensors(pick(tensors)) for pick in self._picks]
        rest = [tensors[i] for i in self._others]
        return rows + (cloned(rest) if fresh else rest)

    def in_order(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """And back: a tensor for each weight."""
        found = dict(zip(self._others, joined[len(self.rows) :], strict=True))
        for (places, _, sizes), row in zip(self.rows, joined, strict=False):
            found |= {i: x.view(self.weights[i].shape) for i, x in zip(places, row.split(sizes), strict=True)}
        return [found[i] for i in range(len(self.weights))]

    def add_(self, eps: list[Tensor], copies: Sequence[Tensor] = ()) -> None:
        """The weights plus what is joined; ``copies``: of the rows, where they are on the weights' device."""
        for (_, pieces, sizes), row, copy in zip(self.rows, eps, copies or self.copied(), strict=False):
            torch.split_with_sizes_copy(copy + row, sizes, out=pieces)
        if self.rest:
            add_scaled_(self.rest, eps[len(self.rows) :], 1)

    def copied(self) -> list[Tensor]:
        """A copy of each row."""
        return [torch.cat(pieces) for _, pieces, _ in self.rows]


class SavedWeights:
    """A copy of weights that goes back into the same storage, bit for bit.

    Args:
        weights: their local pieces are copied.
        backup: where the copy lies. ``"device"``: beside the weights; ``"host"``: in the host's memory, pinned where
            the weights are on a CUDA device, so that both ways are queued on the stream and nobody waits.
        rows: of these very weights; the copy then lies on the device.

    Attributes:
        of_rows: the copies of the rows, which are no weights by themselves. few: they and those of the other weights.
    """

    def __init__(self, weights: Iterable[Tensor], backup: str = "device", rows: Rows | None = None) -> None:
        self._rows = rows
        here = local(weights) if rows is None else rows.rest
        self.of_rows = rows.copied() if rows is not None else []
        self._copies, self._parts = list[Tensor](), list[Part]()
        if here:
            with torch.no_grad():
                self._copy(here, backup)
        self.few = self.of_rows + self._copies

    def _copy(self, here: list[Tensor], backup: str) -> None:
        self._copies = [torch.empty_like(w) for w in here] if backup == "device" else [_on_host(w) for w in here]
        self._parts = alike(here, self._copies)
        for there, copies in self._parts:
            copy_alike_(copies, there)

    @property
    def copies(self) -> list[Tensor]:
        """The saved weights, in their order: their local pieces."""
        return self._copies if self._rows is None else self._rows.in_order(self.few)

    def back(self) -> None:
        """Copy back; by copy and never by subtraction, so that no rounding and no inf or NaN stays."""
        for (_, pieces, sizes), copy in zip(self._rows.rows if self._rows else (), self.of_rows, strict=True):
            torch.split_with_sizes_copy(copy, sizes, out=pieces)
        if self._rows is not None and not self._rows.in_place():
            self._back(alike(self._rows.weights, self.copies))
        elif self._parts:
            self._back(self._parts)

    @torch.no_grad()
    def _back(self, parts: list[Part]) -> None:
        for weights, copies in parts:
            copy_alike_(weights, copies)


def _apart(weights: list[Tensor]) -> list[Tensor]:
    """Those whose memory no other of them has a part of: there eps of both is added."""
    shared, end, last = set[int](), 0, 0
    for weight in sorted(weights, key=Tensor.data_ptr):
        if weight.data_ptr() < end:
            shared |= {id(weight), last}
        if weight.data_ptr() + weight.nbytes > end:
            end, last = weight.data_ptr() + weight.nbytes, id(weight)
    return [w for w in weights if id(w) not in shared]


def _cut(weights: list[Tensor]) -> list[list[Tensor]]:
    """In parts of a row's length at most."""
    parts, room = list[list[Tensor]](), 0
    for weight in weights:
        if not parts or weight.numel() > room:
            parts.append([])
            room = LENGTH
        parts[-1].append(weight)
        room -= weight.numel()
    return parts


def _on_host(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)


def _at(weights: list[Tensor]) -> tuple[list[int], list[int], bool]:
    """Where they lie, how long they are, and whether all are in one piece: the same means the same memory."""
    whole = all(map(Tensor.is_contiguous, weights))
    return list(map(Tensor.data_ptr, weights)), list(map(Tensor.numel, weights)), whole


def _is_small(weight: Tensor) -> bool:
    plain = type(weight) in (Tensor, nn.Parameter) and weight.layout is torch.strided
    return plain and weight.is_contiguous() and weight.nbytes <= SMALL
