"""What a loss is computed from and writes in place (``x.sub_(mean)``): each pass begins from the same values.

The tensors of the batch, and those that the function names or closes over; not what it finds in a long list, and not
what carries a gradient. They are copied before the first ascents, to see whether the function writes them; later only
where it was seen to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from steppe._nested import tensors_of

FIRST = 3
"""In so many first passes everything is copied."""

LARGE = 2**26
"""Bytes of a tensor that is not copied on suspicion: it may be all of the data."""

FEW = 32
"""Entries of a list or dict that a function names, up to which tensors are looked for in it."""


class Inputs:
    """Knows whether the function writes what it is given."""

    def __init__(self) -> None:
        self.fresh, self.writes = FIRST, False
        self._there: tuple[Any, tuple[Any, ...]] | None = None

    def of(self, function: Callable[..., Any], batches: tuple[Any, ...]) -> None:
        """The passes to come are of this function on these batches."""
        self._there = function, batches

    def over(self) -> None:
        """They are over."""
        self._there = None

    def held(self) -> list[Written]:
        """What they are as yet."""
        if self._there is None:
            return []
        found = {id(t): t for t in [*tensors_of(self._there[1]), *_named(self._there[0])] if not t.requires_grad}
        return [Written(self, list(found.values()))] if found else []


class Written:
    """The inputs as they are before a pass."""

    def __init__(self, inputs: Inputs, tensors: list[Tensor]) -> None:
        self._inputs, self._tensors = inputs, tensors
        copies = inputs.writes or inputs.fresh > 0
        self._copies = [_copy(t) if copies and (inputs.writes or t.nbytes <= LARGE) else None for t in tensors]
        self._versions = [_version(t) for t in tensors]
        self._left: list[tuple[Tensor, Tensor]] | None = None

    def again(self) -> None:
        """Begin the second pass where the first began."""
        changed = self._changed()
        self._left = [(tensor, _copy(tensor)) for tensor, _ in changed]
        _put((tensor, copy) for tensor, copy in changed if copy is not None)

    def done(self) -> None:
        """Put back what the first pass left or, where there was none, what was there."""
        there = self._changed() if self._left is None else self._left
        _put((tensor, copy) for tensor, copy in there if copy is not None)

    def _changed(self) -> list[tuple[Tensor, Tensor | None]]:
        self._inputs.fresh -= 1
        written = [_version(t) != version for t, version in zip(self._tensors, self._versions, strict=True)]
        if not any(written):
            return []
        changed = [(t, c) for t, c, moved in zip(self._tensors, self._copies, written, strict=True) if moved]
        self._inputs.writes = True
        if any(copy is None for _, copy in changed):
            warnings.warn(
                "the function of the loss wrote its input in place for the first time: the other pass of this step did "
                "not begin from the same values; from the next step on it does",
                stacklevel=2,
            )
        return changed


def _named(function: Any) -> Iterator[Tensor]:
    """The tensors that a function closes over, names among its globals or has as defaults, alone or in a few."""
    code = getattr(function, "__code__", None)
    if code is None:
        return
    yield from _among(function.__globals__.get(name) for name in code.co_names)
    yield from _among(function.__defaults__ or ())
    for cell in function.__closure__ or ():
        try:
            yield from _among((cell.cell_contents,))
        except ValueError:
            continue  # empty as yet


def _among(held: Iterable[Any]) -> Iterator[Tensor]:
    for each in held:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, (list, tuple)) and len(each) <= FEW:
            yield from (t for t in each if isinstance(t, Tensor))
        elif isinstance(each, Mapping) and len(each) <= FEW:
            yield from (t for t in each.values() if isinstance(t, Tensor))


@torch.no_grad()
def _put(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for tensor, copy in pairs:
        tensor.copy_(copy)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
