"""What a loss binds anew: names by ``nonlocal`` and ``global``, attributes of objects, keys of dicts, batches' parts.

Such a value (a hidden state that is carried on, logits that are kept, a count of what was right) is state like a
module's own: both passes begin from the same, and what stays is what the first left. Lists that grow are let grow.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator
from itertools import chain
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from steppe._bindings import refill
from steppe._nested import is_array
from steppe._reach import names_in, read_by

DEEP = 4
"""So many calls, one within the other, are looked into."""

LARGE = 2**26
"""Bytes of a tensor that is not copied on suspicion, in the first steps: it may be all of the data."""

ARRAY = 2**20
"""The same of an array, which is copied at every step, as nothing tells of that it was written."""

FEW = 32
"""Items of a dict or a list that are looked at."""

_Step = dis.Instruction
CHANGEABLE = (dict, list, UserDict)
"""Batches that a function may take parts out of."""

_MISSING = object()
_KEYED = (dict, defaultdict, OrderedDict)
_BINDS = ("STORE_", "DELETE_")
_BETWEEN = ("SWAP", "ROT_", "NOP", "EXTENDED_ARG")
"""Steps that may come between those that count: they order the stack, or belong to the step after them."""
_CHANGES = frozenset(("pop", "popitem", "setdefault", "update", "clear"))
_WRITES = frozenset(("data", "load_state_dict"))
_FOREIGN = frozenset(("torch", "steppe", "numpy", "builtins"))
_OTHERS = (nn.Module, Tensor, type, ModuleType, FunctionType)


class Stores(NamedTuple):
    """What some code binds: its free names, globals, attributes (of anything).

    ``keys``: whether it changes dicts. ``counts``: whether it counts in some.
    """

    free: frozenset[str]
    known: frozenset[str]
    attributes: frozenset[str]
    keys: bool
    counts: bool


class Place(Protocol):
    """Where something is bound."""

    def read(self) -> Any:
        """What is there now."""

    def write(self, found: Any) -> None:
        """Have there what was read."""


class Bound:
    """What a function may bind, as it is before a pass."""

    def __init__(self, places: list[Place]) -> None:
        self._places = places
        self._start = self._left = [place.read() for place in places]

    def again(self) -> None:
        """Begin the second pass where the first began."""
        self._left = [place.read() for place in self._places]
        self._put(self._start)

    def done(self) -> None:
        """Put back what the first pass left or, where there was none, what was there."""
        self._put(self._left)

    def _put(self, found: list[Any]) -> None:
        for place, each in zip(self._places, found, strict=True):
            place.write(each)


class _Cell:
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


class _Keys:
    """Some names of a namespace."""

    def __init__(self, space: dict[str, Any], names: frozenset[str]) -> None:
        self._space, self._names = space, names

    def read(self) -> list[Any]:
        return [self._space.get(name, _MISSING) for name in self._names]

    def write(self, found: list[Any]) -> None:
        for name, each in zip(self._names, found, strict=True):
            if each is not _MISSING:
                self._space[name] = each
            else:
                self._space.pop(name, None)


class _Items:
    """All of a dict or a list, or all but its counts."""

    def __init__(self, container: Any, counts: bool = False) -> None:
        self._container, self._counts = container, counts

    def read(self) -> Any:
        return self._container.copy()

    def write(self, found: Any) -> None:
        if self._counts:
            found = found | {key: value for key, value in self._container.items() if type(value) is int}
        refill(self._container, found)


class _Array:
    """The numbers of an array, which nothing tells of that they were written."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def read(self) -> Any:
        return self._array.copy()

    def write(self, found: Any) -> None:
        if self._array.flags.writeable:
            self._array[...] = found


def places(function: Any, batches: tuple[Any, ...]) -> list[Place]:
    """Everywhere that a function, and those that it reads, bind; a batch is changed by anybody."""
    given = [batch for arguments in batches for batch in arguments]
    found: list[Place] = [_Items(_inner(batch)) for batch in given if _is_few(_inner(batch), (*_KEYED, list))]
    seen = {id(_inner(batch)) for batch in given}
    given += _bare(function)[1]
    for each in functions_of(function):
        found += _of(each, given, seen)
    return found


def _of(function: Any, given: list[Any], seen: set[int]) -> Iterator[Place]:
    stores, code = stores_of(function.__code__), function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if name in stores.free and id(cell) not in seen:
            seen.add(id(cell))
            yield _Cell(cell)
    if stores.known:
        yield _Keys(function.__globals__, stores.known)
    if not any(stores):
        return
    things = [*_read(function), *given]
    spaces = [space for space in map(_space, things) if space is not None]
    yield from (_Keys(space, stores.attributes) for space in spaces if stores.attributes)
    for thing in (*things, *(value for space in spaces for value in space.values())):
        if id(thing) in seen:
            continue
        if stores.keys and _is_few(thing, _KEYED):
            seen.add(id(thing))
            yield _Items(thing, stores.counts)
        elif is_array(thing) and thing.shape and thing.nbytes <= ARRAY:
            seen.add(id(thing))
            yield _Array(thing)


def binds(function: Any) -> bool:
    """Whether a function, or one that it reads, binds anything."""
    return any(any(stores_of(each.__code__)) for each in functions_of(function))


def writes(function: Any) -> bool:
    """Whether a function, one that it reads, or a method of a module that is called in them, writes tensors in place.

    By the names in their code: ``mul_``, ``.data``.
    """
    named = {name for each in functions_of(function) for name in names_in(each.__code__)}
    kinds = {type(thing) for thing in held_by(function) if isinstance(thing, nn.Module)}
    methods = (inspect.unwrap(getattr(kind, name, None)) for kind in kinds for name in named)  # of `no_grad`
    own = [method for method in methods if type(method) is FunctionType and not _foreign(method)]
    return any(map(_is_in_place, chain(named, *(names_in(method.__code__) for method in own))))


def _is_in_place(name: str) -> bool:
    return name in _WRITES or name.startswith("_foreach") or (name.endswith("_") and not name.startswith("_"))


def named_by(function: Any) -> list[Any]:
    """What one function names: closed over, global, or an attribute of an object of these."""
    read, names = _read(function), set(names_in(function.__code__))
    spaces = [space for space in map(_space, read) if space is not None]
    return read + [space[name] for space in spaces for name in names & space.keys()]


def held_by(function: Any) -> list[Any]:
    """What the function, and those that it reads, read, with the attributes of objects: buffers, metrics, teachers."""
    read = [thing for each in functions_of(function) for thing in _read(each)]
    spaces = (_space(thing) for thing in read)
    return read + [value for space in spaces if space is not None for value in space.values()]


@functools.lru_cache(maxsize=4096)
def stores_of(code: CodeType) -> Stores:
    """What code binds, and the functions within it, but for what it counts up (``calls += 1``): that counts passes."""
    inner = [stores_of(each) for each in code.co_consts if isinstance(each, CodeType)]
    steps = [step for step in dis.get_instructions(code) if not step.opname.startswith(_BETWEEN)]
    counts = [False] * 3 + [_counts(*steps[i - 3 : i + 1]) for i in range(3, len(steps))]
    bound: dict[str, set[str]] = {"free": set(), "known": set(), "attributes": set()}
    items: list[bool] = []
    for step, counting in zip(steps, counts, strict=False):
        kind = _binds(step)
        if kind == "items":
            items.append(counting)
        elif kind is not None and not counting:
            bound[kind] |= _names(step)
    keys = not all(items) or not _CHANGES.isdisjoint(code.co_names)
    return Stores(
        frozenset(bound["free"].union(*(s.free for s in inner)) & set(code.co_freevars)),
        frozenset(bound["known"]).union(*(s.known for s in inner)),
        frozenset(bound["attributes"]).union(*(s.attributes for s in inner)),
        keys or any(s.keys for s in inner),
        any(items) or any(s.counts for s in inner),
    )


def _binds(step: _Step) -> str | None:
    """Which names of ``Stores``, or ``"items"``, a step binds; by what `dis` says of it, as opcodes come and go.

    Python 3.12 has another one for the items of a slice, 3.13 has some that bind two local names.
    """
    if not any(word in step.opname for word in _BINDS) or step.opcode in dis.haslocal:
        return None
    if step.opcode in dis.hasfree:
        return "free"
    if step.opcode in dis.hasname:  # _NAME: in the body of a class
        return {"GLOBAL": "known", "NAME": None}.get(step.opname.rpartition("_")[2], "attributes")
    return "items"


def _names(step: _Step) -> set[str]:
    """The names that a step binds: a step made of two has both."""
    found = step.argval if isinstance(step.argval, tuple) else (step.argval,)
    return {name for name in found if isinstance(name, str)}


def _counts(loaded: _Step, constant: _Step, total: _Step, stored: _Step) -> bool:
    """Whether these add one to what is stored."""
    adds = total.argrepr in ("+", "+=") or total.opname.endswith("_ADD")
    one = constant.opname.startswith("LOAD_") and type(constant.argval) is int and constant.argval == 1
    return adds and one and (loaded.argval == stored.argval or _binds(stored) == "items")


def functions_of(function: Any) -> list[Any]:
    """The function, and those of the user's that run in it: what it names or closes over, and methods that it calls."""
    found: dict[Any, Any] = {}
    here = [_bare(function)[0]]
    for _ in range(DEEP):
        here = [each for each in here if hasattr(each, "__code__") and _key(each) not in found]
        found |= {_key(each): each for each in here}
        here = [beneath for each in here for beneath in _called(each)]
    return [each for each in found.values() if not _foreign(each)]


def _called(function: Any) -> Iterator[Any]:
    names = (*names_in(function.__code__), "__call__")
    for each in _read(function):
        if type(each) is FunctionType and not _foreign(each):
            yield each
        elif _space(each) is not None:
            methods = (getattr(type(each), name, None) for name in names)
            yield from (MethodType(m, each) for m in methods if type(m) is FunctionType and not _foreign(m))


def _key(function: Any) -> Any:
    return id(getattr(function, "__func__", function)), id(getattr(function, "__self__", None))


def _bare(function: Any) -> tuple[Any, list[Any]]:
    """What a partial or an object that can be called runs, and what it was given before."""
    given: list[Any] = []
    while isinstance(function, functools.partial):
        given += [*function.args, *function.keywords.values()]
        function = function.func
    call = vars(type(function)).get("__call__") if _space(function) is not None else None
    return MethodType(call, function) if type(call) is FunctionType else function, given


def _read(function: Any) -> list[Any]:
    """What a function reads; a method reads its object."""
    return [*read_by(function), getattr(function, "__self__", None)]


def _space(thing: Any) -> dict[str, Any] | None:
    """The attributes of an object of the user's own class; a model's modules are looked at elsewhere."""
    if isinstance(thing, _OTHERS) or _foreign(type(thing)):
        return None
    found = getattr(thing, "__dict__", None)
    return found if type(found) is dict else None


def _foreign(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).partition(".")[0] in _FOREIGN


def _inner(batch: Any) -> Any:
    return batch.data if isinstance(batch, UserDict) else batch


def _is_few(thing: Any, kinds: tuple[type, ...]) -> bool:
    return type(thing) in kinds and len(thing) <= FEW
