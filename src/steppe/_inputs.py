"""What a loss is computed from and writes in place (``x.sub_(mean)``) or binds anew: each pass begins from the same.

The tensors of the batch, and those that the function names or closes over; not what it finds in a long list, and not
what carries a gradient. They are copied before the first ascents, to see whether the function writes them; later only
where it was seen to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from operator import attrgetter
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from steppe._bound import CHANGEABLE, LARGE, Bound, binds, functions_of, held_by, places, reads_of
from steppe._graphs import code_of
from steppe._nested import tensors_of
from steppe._reach import names_in, read_by
from steppe._spaces import space_of
from steppe._state import SMALL

FIRST = 3
"""In so many first passes everything is copied."""

FEW, MOST = 32, 256
"""Entries of a list, tuple or dict that a function names, up to which tensors are looked for in it; and in all."""

_VERSION = attrgetter("_version")
_CODED = frozenset((FunctionType, MethodType))
_FLAT = frozenset((list, tuple, dict))
_WITHOUT = frozenset((Tensor, FunctionType, ModuleType, type(None), int, float, *_FLAT))  # attributes of the user's


class Inputs:
    """Knows whether the function writes what it is given."""

    def __init__(self) -> None:
        self.fresh, self.writes = FIRST, False
        # Bytes of the largest that it writes where no count of versions tells of it: kernels (batch norm's), ``.data``.
        self.silent = 0
        self._binding: dict[Any, bool] = {}  # whether functions about some kinds of things bind anything: most do not
        self._names: dict[Any, frozenset[str]] = {}  # in the code of such functions
        self._there: tuple[Any, tuple[Any, ...]] | None = None
        self._read: list[Any] | None = None

    def of(self, function: Callable[..., Any], batches: tuple[Any, ...]) -> None:
        """The passes to come are of this function on these batches; a host's names the user's that runs in it."""
        self._there, self._read = (getattr(function, "of_user", function), batches), None

    @property
    def function(self) -> Callable[..., Any] | None:
        """The function of the passes that are under way."""
        return None if self._there is None else self._there[0]

    def read(self) -> list[Any]:
        """What it names, has as defaults or closes over as they begin."""
        if self._read is None:
            self._read = read_by(self.function)
        return self._read

    def over(self) -> None:
        """They are over."""
        self._there = self._read = None

    def held(self) -> list[Written | Bound]:
        """What they are as yet."""
        if self._there is None:
            return []
        function, batches = self._there
        about = self._about(function)
        if (binding := self._binding.get(about)) is None:
            binding = self._binding[about] = binds(function)
        reads = reads_of(function) if binding else None
        found = _found(batches, self.read(), held_by(function, reads) if binding else ())
        held: list[Written | Bound] = [Written(self, found)] if found else []
        if binding or (batches[0] and isinstance(batches[0][0], CHANGEABLE)):
            held.append(Bound(places(function if binding else None, batches, reads)))
        return held

    def _about(self, function: Any) -> tuple[Any, ...]:
        """Its code and the kinds of things that it reads: a criterion may be exchanged for one that has a state."""
        code = getattr(function, "__code__", None) or code_of(function)
        if (names := self._names.get(code)) is None:
            names = self._names[code] = frozenset(n for f in functions_of(function) for n in names_in(f.__code__))
        about = [code]
        for thing in (*self.read(), getattr(function, "__self__", None)):
            about.append(thing.__code__ if type(thing) in _CODED else type(thing))  # a call less: every step asks
            if type(thing) not in _WITHOUT and (space := space_of(thing)) is not None:
                about += [_kind(space[name]) for name in space if name in names]
        return tuple(about)

    def __getstate__(self) -> dict[str, Any]:
        """Code cannot be pickled."""
        return vars(self) | {"_binding": {}, "_names": {}}


class Written:
    """The inputs as they are before a pass."""

    def __init__(self, inputs: Inputs, tensors: list[Tensor]) -> None:
        self._inputs, self._tensors = inputs, tensors
        self._copies: list[Tensor | None] = [None] * len(tensors)
        if inputs.writes or inputs.silent or inputs.fresh > 0:
            self._copies = [_copy(t) if self._is_kept(t) else None for t in tensors]
        self._versions = _versions(tensors)
        self._left: list[tuple[Tensor, Tensor]] | None = None

    def _is_kept(self, tensor: Tensor) -> bool:
        inputs = self._inputs
        tried = inputs.fresh > 0 and tensor.nbytes <= LARGE
        return inputs.writes or tried or self._may_be_written(tensor)

    def _may_be_written(self, tensor: Tensor) -> bool:
        """Whether one like it was seen to be written where no count of versions tells of it."""
        return tensor.nbytes <= self._inputs.silent and _is_plain(tensor)

    def again(self) -> None:
        """Begin the second pass where the first began."""
        self._left = []
        if changed := self._changed():
            self._left = [(tensor, _copy(tensor)) for tensor, _ in changed]
            _put((tensor, copy) for tensor, copy in changed if copy is not None)

    def done(self) -> None:
        """Put back what the first pass left or, where there was none, what was there."""
        if there := self._changed() if self._left is None else self._left:
            _put((tensor, copy) for tensor, copy in there if copy is not None)

    def _changed(self) -> list[tuple[Tensor, Tensor | None]]:
        now, inputs = _versions(self._tensors), self._inputs
        if inputs.fresh <= 0 and not inputs.silent and now == self._versions:
            return []
        every = list(zip(self._tensors, self._copies, self._versions, now, strict=True))
        if inputs.fresh > 0:
            silently = [each[0].nbytes for each in every if _differs_silently(*each)]
            inputs.silent = max(inputs.silent, SMALL, *silently) if silently else inputs.silent
        inputs.fresh -= 1
        changed = [(t, copy) for t, copy, before, after in every if before != after or self._may_be_written(t)]
        inputs.writes = inputs.writes or now != self._versions
        if any(copy is None for _, copy in changed):
            warnings.warn(
                "the function of the loss wrote its input in place for the first time: the other pass of this step did "
                "not begin from the same values; from the next step on it does",
                stacklevel=2,
            )
        return changed


def _kind(thing: Any) -> Any:
    return thing.__code__ if type(thing) in _CODED else type(thing)  # somebody's ``__getattr__`` may raise anything


def _found(batches: tuple[Any, ...], read: list[Any], further: Iterable[Any]) -> list[Tensor]:
    """The tensors of the batches, and those among what the function closes over, names or has as defaults."""
    few = [each for each in further if not isinstance(each, Tensor) or each.nbytes <= LARGE]  # not all of the data
    waiting: list[Any] = [*(tensors_of(batches) if batches[0] else ()), *read, *few]
    found: dict[int, Tensor] = {}
    for each in waiting:  # which grows
        if isinstance(each, Tensor):
            if not each.requires_grad:
                found[id(each)] = each
        elif type(each) in _FLAT and len(each) <= FEW:
            waiting += each.values() if type(each) is dict else each
        if len(waiting) > MOST:
            break
    return list(found.values())


def _differs_silently(tensor: Tensor, copy: Tensor | None, before: int, after: int) -> bool:
    """Whether a tensor is another than its copy, though its version is the same."""
    if copy is None or before != after or not _is_plain(tensor) or torch.equal(tensor, copy):
        return False
    return not (tensor.is_floating_point() and torch.equal(tensor.nan_to_num(), copy.nan_to_num()))


def _is_plain(tensor: Tensor) -> bool:
    """Whether it may be written, and compared."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided:
        return False
    expanded = not tensor.is_contiguous() and 0 in tensor.stride()
    return not (expanded or tensor.is_meta or tensor.is_inference() or tensor.is_quantized)


@torch.no_grad()
def _put(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for tensor, copy in pairs:
        tensor.copy_(copy)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _versions(tensors: list[Tensor]) -> list[int]:
    """Counts that every operation in place moves; those of inference tensors cannot be asked for."""
    try:
        return list(map(_VERSION, tensors))
    except RuntimeError:
        return [0 if t.is_inference() else t._version for t in tensors]
