"""Batches as they come: tensors in lists, (named) tuples, mappings and dataclasses, changed part by part or cut."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

KEEP = object()
"""What a change returns to leave a part as it is, or to look into it where it is a container."""

CONTAINERS = (OrderedDict, defaultdict, Counter, dict, list, deque, set, tuple)


def mapped(batch: Any, change: Callable[[Any, str], Any], name: str = "") -> Any:
    """The batch with ``change(part, name)`` for every part; containers are new ones of the same class."""
    new = change(batch, name)
    if new is not KEEP:
        return new
    below = children(batch)
    if below is None:
        return batch
    named = not isinstance(batch, (list, tuple))
    return rebuilt(batch, {k: mapped(v, change, str(k) if named else name) for k, v in zip(*below, strict=True)})


def fresh(batch: Any) -> Any:
    """The batch in new containers, of new tensors: what a loss takes out of it, or writes, is there the next time."""
    return mapped(batch, lambda part, _: part.clone() if isinstance(part, Tensor) else KEEP)


def children(part: Any) -> tuple[list[Any], list[Any]] | None:
    """Names and parts of a container: a mapping, dataclass, named tuple, list or tuple. None: it is none of these."""
    if isinstance(part, Mapping):
        return list(part), list(part.values())
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        names = [f.name for f in dataclasses.fields(part)]
        return names, [getattr(part, n) for n in names]
    if isinstance(part, (list, tuple)):
        return list(range(len(part))), list(part)
    return None


def rebuilt(part: Any, items: dict[Any, Any]) -> Any:
    """A container of the same class with other parts; the one that is given is not written on."""
    if isinstance(part, Mapping):
        return _like(part, items)
    if isinstance(part, (list, tuple)):
        return type(part)(*items.values()) if hasattr(part, "_fields") else type(part)(items.values())
    new = copy.copy(part)
    for name, value in items.items():
        object.__setattr__(new, name, value)  # frozen ones too
    return new


def tensors_of(batch: Any) -> list[Tensor]:
    """Every tensor with a first dimension, in order."""
    if isinstance(batch, Tensor):
        return [batch] if batch.ndim else []
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        return [t for v in batch for t in tensors_of(v)]
    below = children(batch)
    return [] if below is None else [t for v in below[1] for t in tensors_of(v)]


def is_array(part: Any) -> bool:
    """Whether it is an array or number of numpy (which need not be there)."""
    return type(part).__module__ == "numpy" and hasattr(part, "shape")


def cut(batch: Any, total: int, length: int, end: bool = False) -> Any:
    """The first (or last) ``length`` of ``total`` positions of every tensor that has them.

    Those are dimensions after the first of size ``total``: all of an integer or boolean tensor (tokens, labels,
    masks); of a floating-point one the second, or both of the last two (an additive mask). Offsets of packed
    sequences (``cu_seq...``) are clamped and ``position_ids`` begin at 0 again.
    """
    start = total - length if end else 0

    def change(part: Any, name: str) -> Any:
        if not isinstance(part, Tensor):
            return KEEP
        if name.startswith("cu_seq"):
            return (part - start).clamp(0, length)
        for dim in _positions(part, total):
            part = part.narrow(dim, start, length)
        return _from_zero(part) if end and name == "position_ids" and part.ndim == 2 else part

    return mapped(batch, change)


def packed_starts(batch: Any) -> Tensor | None:
    """Where each sequence of a packed row begins (``cu_seq...``, ``position_ids`` or ``seq_idx``); None: not packed."""
    if not isinstance(batch, Mapping):
        return None
    for name, value in batch.items():
        if str(name).startswith("cu_seq") and isinstance(value, Tensor) and value.ndim == 1:
            return value[:-1]
    for name, begins in (("position_ids", lambda p: p == 0), ("seq_idx", lambda s: s.diff(prepend=s[:1] - 1) != 0)):
        row = batch.get(name)
        if isinstance(row, Tensor) and row.ndim == 2 and row.shape[0] == 1:
            return begins(row[0]).nonzero()[:, 0]
    return None


def _positions(tensor: Tensor, total: int) -> list[int]:
    dims = [d for d in range(1, tensor.ndim) if tensor.shape[d] == total]
    if not tensor.is_floating_point():
        return dims
    square = [tensor.ndim - 2, tensor.ndim - 1]
    return square if tensor.ndim > 2 and dims[-2:] == square else [d for d in dims if d == 1]


def _from_zero(positions: Tensor) -> Tensor:
    """The sequence that is cut at its beginning counts from 0 again, as packed sequences are told apart by their 0."""
    headless = (positions == 0).cumsum(1) == 0
    return positions - torch.where(headless, positions[:, :1], 0)


def _like(batch: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """The items in a mapping of the same class (BatchEncoding has methods of its own), where a copy is a real one."""
    if hasattr(batch, "__dataclass_fields__"):  # transformers' ModelOutput, which refuses update()
        return type(batch)(**items)
    if not isinstance(batch, (dict, UserDict)):
        return items
    new = copy.copy(batch)
    new.update(items)
    return new


@functools.lru_cache(maxsize=4096)
def container_of(kind: Any) -> Any:
    """Python's own container that a class is or is derived of; None: of none, or torch made it."""
    if kind.__module__.partition(".")[0] == "torch":
        return None
    return next((each for each in kind.__mro__ if each in CONTAINERS), None)


def copied(container: Any) -> Any:
    """What is in a container of Python's, or of a class derived of it."""
    own: Any = type(container)
    if (kind := container_of(own)) is own:
        return container.copy()
    return dict(kind.items(container)) if issubclass(kind, dict) else list(kind.__iter__(container))


def refill(container: Any, content: Any) -> None:
    """Have in a container what was in it; by the methods of Python's own class: others may count or refuse."""
    keyed = isinstance(content, dict)
    same = len(container) == len(content) and all(map(is_, container, content))
    if same and (not keyed or all(map(is_, container.values(), content.values()))):
        return
    own: Any = type(container)
    kind = container_of(own) or own
    kind.clear(container)
    if not keyed:
        (kind.update if kind is set else kind.extend)(container, content)
        return
    for key, value in content.items():
        kind.__setitem__(container, key, value)
