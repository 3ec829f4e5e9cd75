"""What tells two calls of a function apart: all that its Python may read, as far as that is seen without running it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import attrgetter, is_, is_not
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from steppe._nested import children
from steppe._reach import MANY, below, names_in

DEEP = 4
"""So far a function is followed into those that it calls."""

_IS_THERE, _TRAINED = partial(is_not, None), attrgetter("requires_grad")
_SCALARS = (int, float, complex, str, bytes, torch.dtype, torch.device)
_CONTAINERS = (list, tuple, dict)
_NO_SETTINGS = (nn.Module, Tensor, type, ModuleType, FunctionType, MethodType, partial)


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
    """The modules that a look runs through, and all that they hold; asked at the speed of C, before every replay."""

    def __init__(self) -> None:
        self._roots: list[nn.Module] = []
        self._known: list[Any] = []
        self._attributes: list[dict[str, Any]] = []  # of each module; then its submodules, its weights and buffers
        self._below: list[dict[str, Any]] = []
        self._inside: list[dict[str, Any]] = []
        self._settings: list[dict[str, Any]] = []  # of objects among the attributes, such as a config
        self._named: list[tuple[dict[str, Any], str]] = []  # globals that the code of their classes has names of

    def hold(self, roots: list[nn.Module]) -> tuple[list[Any], list[Any]]:
        """All attributes, weights and buffers; and where those tensors lie."""
        attributes = [*_values(self._attributes), *_values(self._below)]
        if not (_identical(roots, self._roots) and _identical(attributes, self._known)):
            self._walk(roots)
            attributes = self._known
        tensors = list(filter(_IS_THERE, _values(self._inside)))
        device = tensors[0].device.type
        places: list[Any] = [*map(Tensor.data_ptr, tensors), *map(_TRAINED, tensors)]
        places += [torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
        named = [space.get(name) for space, name in self._named]
        return [*attributes, *tensors, *_values(self._settings), *named], places

    def _walk(self, roots: list[nn.Module]) -> None:
        every = dict.fromkeys(m for root in roots for m in root.modules())
        self._roots, self._attributes = roots, list(map(vars, every))
        self._below = [m._modules for m in every]
        self._inside = [each for m in every for each in (m._parameters, m._buffers)]
        self._known = [*_values(self._attributes), *_values(self._below)]
        self._settings = list({id(each): vars(each) for each in self._known if _has_settings(each)}.values())
        kinds = dict.fromkeys(kind for m in every for kind in type(m).__mro__ if not _is_torch_s(kind))
        spaces = {
            (id(each.__globals__), name): (each.__globals__, name)
            for kind in kinds
            for each in vars(kind).values()
            if isinstance(each, FunctionType)
            for name in names_in(each.__code__)
        }
        self._named = [(space, name) for space, name in spaces.values() if name in space]


def _values(dicts: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, dicts))


def kind_of(read: list[Any], held: list[Any], places: list[Any], batch: Any) -> Kind:
    """The kind of a look at a batch."""
    parts = list(leaves(batch))
    shapes = [(t.shape, t.dtype, t.device, t.requires_grad) for t in parts if isinstance(t, Tensor)]
    return Kind([*read, *(part for part in parts if not isinstance(part, Tensor))], held, [*places, *shapes])


def all_read_by(function: Any) -> list[Any]:
    """What a function reads besides its arguments, in a fixed order, as far as it is seen without running it.

    Its code, and what it closes over, names or has as a default; the same of functions among these, and of objects the
    attributes that the code has names of, a few steps deep.
    """
    found: list[Any] = []
    names: dict[str, None] = {}
    objects: list[Any] = []
    here: list[Any] = [function]
    for _ in range(DEEP):
        codes = [thing.__code__ for thing in here if isinstance(thing, FunctionType)]
        names |= dict.fromkeys(chain.from_iterable(map(names_in, codes)))
        found += [thing for thing in here if not _is_made_anew(thing)]
        objects += filter(_has_settings, here)
        here = [inner for thing in here for inner in _within(thing, names)]
    found += here + [inner for each in objects for inner in _within(each, names)]  # by names that came after them
    return [thing.__code__ if isinstance(thing, FunctionType) else thing for thing in found if not _is_made_anew(thing)]


def _is_made_anew(thing: Any) -> bool:
    """Whether it may be another object each time that holds the same: what is in it counts."""
    return isinstance(thing, (MethodType, partial)) or (type(thing) in _CONTAINERS and len(thing) <= MANY)


def _within(thing: Any, names: dict[str, None]) -> Iterable[Any]:
    if isinstance(thing, FunctionType):
        return () if _is_torch_s(thing) else below(thing)
    if _is_made_anew(thing):
        return below(thing)
    if isinstance(thing, ModuleType) and not thing.__name__.startswith("torch") or _has_settings(thing):
        own, shared = vars(thing), vars(type(thing))
        return [own[n] if n in own else shared[n] for n in names if n in own or n in shared]
    return ()


def _has_settings(thing: Any) -> bool:
    """Whether it is an object of the user's own with attributes, and no module."""
    kind = type(thing)
    return hasattr(thing, "__dict__") and not isinstance(thing, _NO_SETTINGS) and not _is_torch_s(kind)


def _is_torch_s(thing: Any) -> bool:
    return (thing.__module__ or "").startswith(("torch.", "steppe."))


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
