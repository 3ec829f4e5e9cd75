"""What a forward pass may read and move besides the weights that are trained: as it is now, and put back.

Buffers, parameters that are frozen or that the optimizer lacks, and plain attributes of modules: tensors, numbers, and
lists, tuples, dicts, sets and deques of these. What was bound to another object is bound to the old one again, which
costs nothing; what was written in place needs a copy made before. Small tensors are copied always: no count of
versions tells of kernels (batch norm's), ``.data`` or NumPy that write behind autograd's back. Large ones are copied,
and compared, in the first steps, as long as they are not more than what is trained; after that those that were seen to
move.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from steppe._bindings import WRITABLE, Bindings, Found
from steppe._shards import local

SMALL = 2**15
"""Bytes: tensors up to here are always copied."""

FIRST = 3
"""In so many first passes everything is copied, to see what moves."""

ROOM = 2**26
"""Bytes of large buffers and attributes that are copied in these, however few are trained: queues, codebooks."""

_SHAPE = attrgetter("shape")


class Watch:
    """What is known of a model's state over a training: what it is made of, and which of its large tensors move.

    Args:
        roots: the modules whose state it is; asked each time.
        trained: the parameters that are no state, as the passes move them on purpose; asked each time.
        sharded: whether parameters are spread over processes and exchanged within a pass by others: left alone.
    """

    def __init__(
        self,
        roots: Callable[[], list[nn.Module]],
        trained: Callable[[], list[Tensor]],
        sharded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._roots, self._trained, self._sharded = roots, trained, sharded
        self.moving: set[tuple[int, str]] = set()
        self.first = self.unmarked = FIRST
        self._latest: tuple[list[nn.Module], list[Tensor], Bindings] | None = None
        self._cut: _Cut | None = None

    def start(self) -> State:
        """The state that a pass begins with."""
        return State(self, self.first > 0)

    def now(self) -> State:
        """The state that a pass left, to outlive its repetition: what did not move in the pass will not in that."""
        return State(self, False)

    def moved_unmarked(self, left: State) -> list[str]:
        """What a second pass has moved that nobody had marked before the first; asked in the first steps alone."""
        self.unmarked -= 1
        return left.moved() if self.unmarked >= 0 else []

    def forget(self) -> None:
        """Keep no module alive until the next state is asked for; what moves is still known."""
        self._latest = self._cut = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies begin to look anew: what is known is of these very modules."""
        fresh = {"moving": set(), "first": FIRST, "unmarked": FIRST, "_latest": None, "_cut": None}
        return vars(self) | fresh

    def bindings(self) -> Bindings:
        """What is bound where now."""
        roots, trained = self._roots(), self._trained()
        if self._latest is not None:
            old_roots, old_trained, bindings = self._latest
            same = _same(roots, old_roots) and _same(trained, old_trained)
            if same and bindings.hold():
                return bindings
        self._latest = roots, trained, Bindings(roots, trained, self._sharded())
        return self._latest[-1]

    def named(self, generators: Sequence[Any], own: bool) -> tuple[Any, ...]:
        """These generators and, with ``own``, those that the modules have, as they were found latest."""
        there = (self._latest[-1] if self._latest is not None else self.bindings()).generators if own else ()
        return tuple(dict.fromkeys((*generators, *there))) if there else tuple(generators)

    def cut(self, bindings: Bindings, everything: bool) -> _Cut:
        """What is to be copied of these bindings."""
        if self._cut is None or not self._cut.fits(bindings, everything, len(self.moving)):
            self._cut = _Cut(bindings, everything, self.moving, sum(p.nbytes for p in self._trained()))
        return self._cut


class State:
    """Buffers, other parameters and attributes as they are now: same objects, same values."""

    def __init__(self, watch: Watch, everything: bool) -> None:
        self._watch, self._everything = watch, everything
        self._bindings = watch.bindings()
        self._cut = watch.cut(self._bindings, everything)
        self._copies = self._cut.copied()
        self._versions = [_version(t) for t, *_ in self._cut.left] if self._cut.left else []

    def learn(self) -> None:
        """After the pass: learn which large tensors move."""
        for (tensor, module, name, _), version in zip(self._cut.left, self._versions, strict=False):
            if _version(tensor) != version:
                self._watch.moving.add((id(module), name))
                warnings.warn(
                    f"a forward wrote {type(module).__name__}.{name} in place for the first time: the other pass of "
                    "this step did not begin from the same values; from the next step on it does",
                    stacklevel=2,
                )
        self._versions = []
        if self._everything:
            self._everything, self._watch.first = False, self._watch.first - 1
            changed = self._cut.changed(self._copies)
            self._watch.moving |= {(id(m), name) for t, m, name, _ in changed if t.nbytes > SMALL}

    def back(self, left: State | None = None) -> None:
        """Bind and write everything as it was; may be called again after an interruption.

        ``left``: the state of just now.
        """
        if self._everything or self._versions:
            self.learn()
        if not (self._bindings is left._bindings if left is not None else self._bindings.hold()):
            self._bindings.back()
        if not (self._cut is left._cut if left is not None else self._cut.in_place()):
            self._cut.lay_back()
        self._cut.put(self._copies)

    def moved(self) -> list[str]:
        """Which tensors were bound anew or written since, those of normalisation layers apart; waits for the device."""
        here, written = {id(t) for t, *_ in self._watch.bindings().tensors}, self._cut.changed(self._copies)
        moved = written + [found for found in self._cut.all if id(found[0]) not in here]
        return [f"{type(m).__name__}.{name}" for _, m, name, _ in moved if not isinstance(m, _NormBase)]


class _Cut:
    """Which of the tensors of some bindings are copied, and which are left to their count of versions."""

    def __init__(self, bindings: Bindings, everything: bool, moving: set[tuple[int, str]], trained: int) -> None:
        self.bindings, self._key = bindings, (everything, len(moving))
        self.all = bindings.tensors
        # An alias keeps a storage alive, and its values with it, when `.data` is set to another; and no version is
        # counted when the values that a tensor had are put back through it.
        aliases = [t.data for t, *_ in self.all]
        self._laid = [(t, alias) for (t, *_), alias in zip(self.all, aliases, strict=True) if type(t) in WRITABLE]
        self._writable = [t for t, _ in self._laid]
        self._at = self._places()
        # A teacher beside a student, but not what an adapter stands on: quantised weights are buffers.
        room = {True: trained, False: max(trained, ROOM)}
        tries = {parameters: everything and self._large(parameters) <= most for parameters, most in room.items()}
        self.chosen: list[Found] = []
        self.left: list[Found] = []
        to: list[Tensor] = []
        for found, alias in zip(self.all, aliases, strict=True):
            tensor, module, name, parameter = found
            if tensor.nbytes > SMALL and not tries[parameter] and (id(module), name) not in moving:
                self.left.append(found)
            elif (here := _as_bytes(alias)).data_ptr():  # or the storage was set free (FSDP): nothing can be read
                self.chosen.append(found)
                to.append(here)
        devices: dict[torch.device, list[int]] = {}
        for i, x in enumerate(to):
            devices.setdefault(x.device, []).append(i)
        self._numbers = list(devices.values())
        self._parts = [([to[i] for i in part], [len(to[i]) for i in part]) for part in self._numbers]

    def _large(self, parameters: bool) -> int:
        """Bytes of the large tensors that are parameters, or of the others."""
        return sum(t.nbytes for t, _, _, parameter in self.all if parameter is parameters and t.nbytes > SMALL)

    def fits(self, bindings: Bindings, everything: bool, moving: int) -> bool:
        """Whether it is the cut of these, and every tensor lies where it did."""
        return bindings is self.bindings and (everything, moving) == self._key and self.in_place()

    def in_place(self) -> bool:
        """Whether every tensor lies where it did: the same place and shape."""
        return not self._writable or self._places() == self._at

    def _places(self) -> tuple[list[int], list[torch.Size]]:
        return list(map(Tensor.data_ptr, self._writable)), list(map(_SHAPE, self._writable))

    def lay_back(self) -> None:
        """Have every tensor where it was: a forward may have set ``.data`` to another."""
        for (tensor, alias), pointer, shape in zip(self._laid, *self._at, strict=True):
            if tensor.data_ptr() != pointer or tensor.shape != shape:
                tensor.data = alias

    def copied(self) -> list[Tensor]:
        """What is chosen, in one copy for each device; of bytes, which have no graph."""
        return [torch.cat(part) for part, _ in self._parts] if self._parts else []

    def put(self, copies: list[Tensor]) -> None:
        """Write copies back."""
        if copies:
            for (part, sizes), copy in zip(self._parts, copies, strict=True):
                torch.split_with_sizes_copy(copy, sizes, out=part)

    def changed(self, copies: list[Tensor]) -> list[Found]:
        """Which tensors are not what was copied of them."""
        found = []
        for places, (part, sizes), copy in zip(self._numbers, self._parts, copies, strict=True):
            pieces = zip(places, part, copy.split(sizes), strict=True)
            found += [self.chosen[i] for i, here, piece in pieces if not torch.equal(here, piece)]
        return found


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return a is b or (len(a) == len(b) and all(map(is_, a, b)))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _as_bytes(tensor: Tensor) -> Tensor:
    """What lies here of a tensor, as one row of bytes: all of its storage, if it is scattered or laid over itself."""
    if type(tensor) is not Tensor:
        tensor = local([tensor])[0]
    if not tensor.is_contiguous():
        count = tensor.untyped_storage().nbytes() // tensor.element_size()
        tensor = tensor.as_strided((count,), (1,), 0)
    return tensor.view(-1).view(torch.uint8)
