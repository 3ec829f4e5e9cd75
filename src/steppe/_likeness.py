"""What tells two calls of a function apart: all that its Python may read, as far as that is seen without running it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import is_
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from steppe._nested import children
from steppe._reach import MANY, below

DEEP = 4
"""So far a function is followed into those that it calls."""

_SCALARS = (int, float, complex, str, bytes, torch.dtype, torch.device)
_CONTAINERS = (list, tuple, dict)


@dataclass
class Kind:
    """What tells looks apart: what their Python reads, and where their tensors lie."""

    read: list[Any]  # by the function: numbers and words by value, everything else by identity
    held: list[Any]  # by the modules
    places: list[Any]  # of weights and buffers, the batch's shapes, and settings of torch

    def differs(self, other: Kind) -> str:
        """What of it is another, for a warning; empty: nothing."""
        if not _alike(self.read, other.read):
            return "something that the loss function reads"
        if not _identical(self.held, other.held):
            return "an attribute of a module"
        return "" if self.places == other.places else "the batch's shapes, or where a weight or buffer lies"


class Modules:
    """The modules that a look runs through, and all that they hold."""

    def __init__(self) -> None:
        self._roots: list[nn.Module] = []
        self._all: list[nn.Module] = []
        self._below: list[Any] = []

    def hold(self, roots: list[nn.Module]) -> tuple[list[Any], list[Any]]:
        """All attributes, weights and buffers, at the speed of C; and where those tensors lie."""
        below = self._children()
        if not (_identical(roots, self._roots) and _identical(below, self._below)):
            self._roots, self._all = roots, list(dict.fromkeys(m for root in roots for m in root.modules()))
            below = self._below = self._children()
        attributes = chain.from_iterable(map(dict.values, map(vars, self._all)))
        tensors = [t for m in self._all for t in chain(m._parameters.values(), m._buffers.values()) if t is not None]
        device = tensors[0].device.type
        places: list[Any] = [*map(Tensor.data_ptr, tensors), *(t.requires_grad for t in tensors)]
        places += [torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
        return [*attributes, *below, *tensors], places

    def _children(self) -> list[Any]:
        return [child for module in self._all for child in module._modules.values()]


def kind_of(read: list[Any], held: list[Any], places: list[Any], batch: Any) -> Kind:
    """The kind of a look at a batch."""
    parts = list(leaves(batch))
    shapes = [(t.shape, t.dtype, t.device, t.requires_grad) for t in parts if isinstance(t, Tensor)]
    return Kind([*read, *(part for part in parts if not isinstance(part, Tensor))], held, [*places, *shapes])


def read_by(function: Any) -> list[Any]:
    """What a function reads besides its arguments, in a fixed order, as far as it is seen without running it.

    Its code, and what it closes over, names or has as a default; the same of functions among these, a few calls deep.
    Attributes of objects are not followed.
    """
    found: list[Any] = []
    here: list[Any] = [function]
    for _ in range(DEEP):
        inner: list[Any] = []
        for thing in here:
            followed = _followed(thing)
            if not followed or isinstance(thing, FunctionType):
                found.append(getattr(thing, "__code__", thing))
            if followed:
                inner += below(thing)
        here = inner
    return found + [getattr(thing, "__code__", thing) for thing in here]


def _followed(thing: Any) -> bool:
    if isinstance(thing, FunctionType):
        return not (thing.__module__ or "").startswith("torch")
    return isinstance(thing, (MethodType, functools.partial)) or (type(thing) in _CONTAINERS and len(thing) <= MANY)


def _alike(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(_same, some, others))


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, _SCALARS) and a == b)


def _identical(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def leaves(batch: Any) -> Iterator[Any]:
    """What a batch is made of, in order, the names of its parts before them."""
    found = children(batch)
    if found is None:
        yield batch
        return
    names, parts = found
    yield from names
    for part in parts:
        yield from leaves(part)
