"""Where something is bound: cells, namespaces, containers, arrays; read, and put back as it was."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from io import IOBase
from itertools import islice
from operator import is_
from typing import Any, Protocol

from torch import Tensor

from steppe._nested import copied, is_array, refill

_MISSING = object()


class Place(Protocol):
    """Where something is bound."""

    def read(self) -> Any:
        """What is there now."""

    def write(self, found: Any) -> None:
        """Have there what was read."""


class Cell:
    def __init__(self, cell: Any) -> None:
        self._cell = cell

    def read(self) -> Any:
        try:
            return self._cell.cell_contents
        except ValueError:  # empty as yet
            return _MISSING

    def write(self, found: Any) -> None:
        if found is not _MISSING:
            self._cell.cell_contents = found
        elif self.read() is not _MISSING:
            del self._cell.cell_contents


class Keys:
    """Names of a namespace: some, or all."""

    def __init__(self, space: MutableMapping[str, Any], names: frozenset[str] | None) -> None:
        self._space, self._names = space, names

    def read(self) -> dict[str, Any]:
        if self._names is None:
            return dict(self._space)
        return {name: self._space[name] for name in self._names if name in self._space}

    def write(self, found: dict[str, Any]) -> None:
        space, here = self._space, self.read()
        if len(here) == len(found) and all(map(is_, here.values(), found.values())):
            return
        for name in here.keys() - found.keys():
            del space[name]
        for name, each in found.items():
            if here.get(name, _MISSING) is not each and not (isinstance(each, IOBase) and each.closed):
                space[name] = each  # where a file was closed, another has taken its place, and is written to


class Items:
    """All of a dict, a set or a list; where nothing but counts of a dict has changed, these stay.

    ``counts``: whether the function counts in some.
    """

    def __init__(self, container: Any, counts: bool = False) -> None:
        self._container, self._counts = container, counts

    def read(self) -> Any:
        return copied(self._container)

    def write(self, found: Any) -> None:
        here = self._container
        if self._counts and isinstance(found, dict) and _only_counts(here.items(), found.items()):
            return
        refill(here, found)


class Listed:
    """The items of a list or a queue; one that only grows is a note of what the passes did, and is let grow.

    ``counts``: whether the function counts in some. ``queue``: whether what it appends is taken out again.
    """

    def __init__(self, container: Any, counts: bool, queue: bool) -> None:
        self._container, self._counts = container, counts
        self._queue = queue or getattr(container, "maxlen", None) is not None

    def read(self) -> Any:
        return copied(self._container)

    def write(self, found: Any) -> None:
        here = self._container
        if len(here) >= len(found) and all(map(is_, here, found)) and not self._is_state(here, len(found)):
            return
        if self._counts and _only_counts(enumerate(here), enumerate(found)):
            return
        refill(here, found)

    def _is_state(self, here: Any, grown_from: int) -> bool:
        bounded = getattr(here, "maxlen", None) is not None
        return self._queue and (bounded or any(map(_is_tensor, islice(here, grown_from, None))))


class Array:
    """The numbers of an array, which nothing tells of that they were written."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def read(self) -> Any:
        return self._array.copy()

    def write(self, found: Any) -> None:
        if self._array.flags.writeable:
            self._array[...] = found


def _only_counts(here: Iterable[tuple[Any, Any]], found: Iterable[tuple[Any, Any]]) -> bool:
    """Whether nothing but whole numbers is another than it was."""
    now, then = dict(here), dict(found)
    changed = [key for key in {**now, **then} if now.get(key, _MISSING) is not then.get(key, _MISSING)]
    return all(type(there.get(key, 0)) is int for key in changed for there in (now, then))


def _is_tensor(thing: Any) -> bool:
    if type(thing) in (tuple, list):
        return any(isinstance(each, Tensor) or is_array(each) for each in thing)
    return isinstance(thing, Tensor) or is_array(thing)
