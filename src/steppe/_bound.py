"""What a loss binds anew: names by ``nonlocal`` and ``global``, attributes of objects, keys of dicts, batches' parts.

Such a value (a hidden state that is carried on, logits that are kept, a count of what was right) is state like a
module's own: both passes begin from the same, and what stays is what the first left. Lists that grow are let grow.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from itertools import chain, compress
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from steppe._bindings import has_attributes
from steppe._hooks import run_within
from steppe._nested import container_of, is_array
from steppe._places import Array, Cell, Items, Keys, Listed, Place
from steppe._reach import made_by, names_in, read_by, words_in
from steppe._spaces import OfClass, is_foreign, is_of_users_module, is_whole, is_written_by_users, members_of, space_of
from steppe._stores import Stores, stores_of

DEEP, DEEPER = 4, 8
"""So many calls, one within the other, are looked into, and of the user's own code."""

LARGE = 2**26
"""Bytes of a tensor that is not copied on suspicion, in the first steps: it may be all of the data."""

ARRAY = 2**20
"""The same of an array, which is copied at every step, as nothing tells of that it was written."""

FEW = 32
"""Parts of a batch that is a dict or a list."""

MOST = 256
"""Things, up to which containers are looked into."""

CHANGEABLE = (dict, list, UserDict)
"""Batches that a function may take parts out of."""

LONG = 4096
"""Items of a list, a dict or a set that is looked at."""

_LISTS, _POPS = (list, deque), frozenset(("pop", "popleft"))
_GROWS = frozenset(("append", "appendleft", "extend", "extendleft", "insert"))
_KEYED = (dict, defaultdict, OrderedDict, Counter)
_HOLD = (*_KEYED, *_LISTS, tuple)
_SORTS = frozenset(
    "heappop heappush heappushpop heapreplace insort insort_left insort_right reverse shuffle sort".split()
)
_MOVES = _SORTS.union("appendleft clear extendleft insert pop popleft remove rotate".split())
"""Names of what does more to a list than let it grow."""
_CHANGES = _SORTS.union("__setattr__ add at batch_norm copyto discard fill remove rotate setattr".split())
"""Names of what changes sets, arrays, lists and tensors that it is handed; others are told by their ``_``."""
_WRITES = frozenset(("data", "load_state_dict"))
_BY_WORDS = frozenset(("__dict__", "attrgetter", "getattr", "setattr", "vars"))
"""What reaches attributes that code does not name: then any of an object's may be changed."""
_CODED = (FunctionType, MethodType)
_LOOKED_INTO = (*_CODED, *_HOLD, nn.Module)
_UNSAID = ("__call__", "__enter__", "__exit__", "__getattr__", "__iadd__", "__setattr__", "__setitem__")
"""Methods that code calls without a name."""


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


Reads = list[tuple[Any, list[Any]]]
"""Functions, and what each reads."""


def places(function: Any, batches: tuple[Any, ...], reads: Reads | None = None) -> list[Place]:
    """Everywhere that a function, and those that it reads, bind; a batch is changed by anybody.

    ``reads``: as :func:`reads_of` has just found them.
    """
    given = [batch for arguments in batches for batch in arguments]
    found: list[Place] = [Items(_inner(batch)) for batch in given if _is_few(_inner(batch), (*_KEYED, list))]
    seen = {id(_inner(batch)) for batch in given}
    given += _bare(function)[1]
    reads = reads_of(function) if reads is None else reads
    for each, _ in reads:
        found += _names_of(each, seen)
    return [*found, *_items_of(reads, given, seen)]


def _names_of(function: Any, seen: set[int]) -> Iterator[Place]:
    """Its free names, and globals."""
    stores, code = stores_of(function.__code__), function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if name in stores.free and id(cell) not in seen:
            seen.add(id(cell))
            yield Cell(cell)
    if stores.known:
        yield Keys(function.__globals__, stores.known)


def _items_of(found: Reads, given: list[Any], seen: set[int]) -> Iterator[Place]:
    """Attributes and items of all that these functions read, whichever of them binds it: one hands it to another."""
    every, reads = [each for each, _ in found], [read for _, read in found]
    stores = [stores_of(each.__code__) for each in every]
    if not any(map(_may_bind, every)) and not any(map(_appends, every)):
        return
    counts, keys = _counting(reads, stores), any(s.keys for s in stores)
    attributes = frozenset[str]().union(*(s.attributes for s in stores))
    names = {name for each in every for name in names_in(each.__code__)}
    if "setattr" in names:
        attributes = attributes.union(*(words_in(each.__code__) for each in every))
    things = _followed([*chain.from_iterable(reads), *given], names)
    spaces = [(thing, space) for thing in things if (space := space_of(thing)) is not None]
    yield from (
        Keys(vars(thing), attributes) for thing in things if attributes and (_is_own(thing) or _is_layer(thing))
    )
    for thing, space in spaces:
        kind: Any = type(thing)
        if (whole := is_whole(kind)) or attributes:
            yield Keys(space, None if whole else attributes)
    kinds = {each for thing in things for each, name in members_of(_class_of(thing)) if name in attributes}
    yield from (Keys(OfClass(each), attributes) for each in kinds)
    moves = keys or any(s.counts for s in stores) or not _MOVES.isdisjoint(names)
    pops = not _POPS.isdisjoint(names)
    filled = {id(thing) for read, s in zip(reads, stores, strict=True) if s.keys for thing in read}
    sorts = [not _SORTS.isdisjoint(names_in(each.__code__)) for each in every]
    ordered = {id(thing) for thing in chain.from_iterable(compress(reads, sorts))}
    unnamed = () if _BY_WORDS.isdisjoint(names) else (value for _, space in spaces for value in space.values())
    for thing in (*things, *unnamed):
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        own = attributes and type(thing) not in _KEYED  # `__setattr__ = dict.__setitem__`
        keyed = keys or own or isinstance(thing, defaultdict)  # which is filled by being read
        if (keyed and _is_few(thing, _KEYED, LONG)) or _is_few(thing, (set,), LONG):
            yield Items(thing, counts(thing))
        elif id(thing) in ordered and _is_few(thing, (list,), LONG):
            yield Items(thing)
        elif (moves or _is_queue(thing)) and _is_few(thing, _LISTS, LONG):
            yield Listed(thing, counts(thing), pops or id(thing) in filled)
        elif is_array(thing) and _is_writeable(thing) and thing.nbytes <= ARRAY:
            yield Array(thing)


def _counting(reads: list[list[Any]], stores: list[Stores]) -> Callable[[Any], bool]:
    """Whether whole numbers in a container are counts: where a function that reads it says so, else any function."""
    told: dict[int, bool] = {}
    for read, found in zip(reads, stores, strict=True):
        if found.keys or found.counts:
            told |= {id(thing): told.get(id(thing), False) or found.counts for thing in read}
    anywhere = any(found.counts for found in stores)
    return lambda thing: told.get(id(thing), anywhere)


def binds(function: Any) -> bool:
    """Whether a function, or one that it reads, binds anything."""
    every = functions_of(function)
    queues = any(map(_appends, every)) and any(map(_is_queue, held_by(function)))
    return queues or any(map(_may_bind, every))


def _may_bind(function: Any) -> bool:
    """Whether its code binds anything, or has a name by which it changes what it is handed."""
    names = names_in(function.__code__)
    return any(stores_of(function.__code__)) or not _CHANGES.isdisjoint(names) or any(map(_is_in_place, names))


def writes(function: Any) -> bool:
    """Whether a function, one that it reads, or a method of a module that is called in them, writes tensors in place.

    By the names in their code: ``mul_``, ``.data``; a method of a module's that is called ``update...`` does, whatever
    its code.
    """
    named = {name for each in functions_of(function) for name in names_in(each.__code__)}
    kinds = {type(thing) for thing in held_by(function) if isinstance(thing, nn.Module)}
    if any(name.startswith("update") and hasattr(kind, name) for kind in kinds for name in named):
        return True  # torch's AveragedModel, and others' averages
    there = (getattr(kind, name, None) for kind in kinds for name in named)
    methods = [
        inspect.unwrap(each) for each in there if type(each) is FunctionType and not is_foreign(each)
    ]  # `no_grad`
    return any(map(_is_in_place, chain(named, *(names_in(method.__code__) for method in methods))))


def _is_in_place(name: str) -> bool:
    return name in _WRITES or name.startswith("_foreach") or (name.endswith("_") and not name.startswith("_"))


def named_by(function: Any) -> list[Any]:
    """What one function names: closed over, global, or an attribute of an object of these."""
    return _read(function)


def reads_of(function: Any) -> Reads:
    """The function, and those of the user's that run in it, with what each reads."""
    return [(each, _read(each)) for each in functions_of(function)]


def held_by(function: Any, reads: Reads | None = None) -> list[Any]:
    """What the function, and those that it reads, read, with the attributes of objects: buffers, metrics, teachers."""
    found = [thing for _, read in (reads_of(function) if reads is None else reads) for thing in read]
    read = list({id(thing): thing for thing in found}.values())
    spaces = (space_of(thing) for thing in read)
    return read + [value for space in spaces if space is not None for value in space.values()]


def functions_of(function: Any) -> list[Any]:
    """The function, and those of the user's that run in it: what it names or closes over, and methods that it calls."""
    found: dict[Any, Any] = {}
    here, words = [_bare(function)[0]], set[str]()
    for deep in range(DEEPER):
        here = [each for each in here if hasattr(each, "__code__") and _key(each) not in found]
        here = [each for each in here if deep < DEEP or is_of_users_module(each.__module__)]
        found |= {_key(each): each for each in here}
        words.update(*(words_in(each.__code__) for each in here))
        here = [beneath for each in here for beneath in _called(each, words)]
    return [each for each in found.values() if not is_foreign(each)]


def _called(function: Any, words: Collection[str]) -> Iterator[Any]:
    """``words``: of which one may be a method's name, or its beginning, where it is called by ``getattr``."""
    names = {*names_in(function.__code__), *_UNSAID}
    begun = tuple(each for each in words if each.endswith("_")) if "getattr" in names else ()
    names |= set(words) if "getattr" in names else set()
    for each in _read(function):
        if type(each) in _CODED and not is_foreign(each):
            yield _unwrapped(each)
        elif space_of(each) is not None:
            for kind in _class_of(each).__mro__[:-1]:  # `super()` runs those beneath
                there = [name for name in names if name in vars(kind)]
                there += [name for name in vars(kind) if name.startswith(begun)] if begun else ()
                found = chain.from_iterable(_functions_in(vars(kind)[name]) for name in there)
                yield from (MethodType(_unwrapped(m), each) for m in found if not is_foreign(m))
        elif isinstance(each, nn.Module):
            yield from (_bare(f)[0] for f in run_within(each, names))


def _functions_in(member: Any) -> tuple[Any, ...]:
    """What runs of a class's member."""
    if type(member) is property:
        member = (member.fget, member.fset)
    elif type(member) in (staticmethod, classmethod):
        member = (member.__func__,)
    return tuple(m for m in (member if type(member) is tuple else (member,)) if type(m) is FunctionType)


def _unwrapped(function: Any) -> Any:
    """What torch has decorated (``no_grad``), of which the wrapper says nothing."""
    if not str(function.__globals__.get("__name__")).startswith("torch.") or not hasattr(function, "__wrapped__"):
        return function
    beneath, bound = function.__wrapped__, getattr(function, "__self__", None)
    return beneath if bound is None else MethodType(beneath, bound)


def _key(function: Any) -> Any:
    return id(getattr(function, "__func__", function)), id(getattr(function, "__self__", None))


def _bare(function: Any) -> tuple[Any, list[Any]]:
    """What a partial or an object that can be called runs, and what it was given before."""
    given: list[Any] = []
    while isinstance(function, functools.partial):
        given += [*function.args, *function.keywords.values()]
        function = function.func
    call = vars(type(function)).get("__call__") if space_of(function) is not None else None
    return MethodType(call, function) if type(call) is FunctionType else function, given


def _read(function: Any) -> list[Any]:
    """What a function reads; a method reads its object, and both what they name of the objects that they read."""
    given = (getattr(function, "__kwdefaults__", None) or {}).values()
    return _followed([*read_by(function), getattr(function, "__self__", None), *given], names_in(function.__code__))


def _followed(read: list[Any], names: Collection[str]) -> list[Any]:
    """These, what lies at attributes of these names in the user's objects and modules among them, and in containers."""
    seen = {id(thing) for thing in read}
    for thing in read:  # which grows
        space: Any = (vars(thing) if _is_own(thing) else space_of(thing)) or {}
        beneath = [space[name] for name in names if name in space]
        beneath += (vars(kind)[name] for kind, name in members_of(_class_of(thing)) if name in names)
        for each in chain(beneath, _objects_in(thing) if len(read) < MOST else ()):
            if id(each) not in seen:
                seen.add(id(each))
                read.append(each)
    return read


def _objects_in(thing: Any) -> list[Any]:
    """The functions, objects of the user's classes and containers in a partial or a container of few things."""
    items: Collection[Any] = ()
    if isinstance(thing, functools.partial):
        items = (thing.func, *thing.args, *thing.keywords.values())
    elif _is_few(thing, _HOLD):
        items = [*thing.values(), *made_by(thing)] if isinstance(thing, dict) else thing
    return [each for each in items if isinstance(each, _LOOKED_INTO) or space_of(each) is not None]


def _is_writeable(array: Any) -> bool:
    """A number of numpy's is not."""
    return getattr(getattr(array, "flags", None), "writeable", False)


def _class_of(thing: Any) -> Any:
    return thing if isinstance(thing, type) else type(thing)


def _is_layer(thing: Any) -> bool:
    """Whether it is a module of a class of torch's own, at whose attributes nobody else looks."""
    kind: Any = type(thing)
    return isinstance(thing, nn.Module) and not has_attributes(kind)


def _is_own(thing: Any) -> bool:
    return type(thing) is ModuleType and is_written_by_users(thing)


def _appends(function: Any) -> bool:
    return not _GROWS.isdisjoint(names_in(function.__code__))


def _is_queue(thing: Any) -> bool:
    return isinstance(thing, deque) and thing.maxlen is not None


def _inner(batch: Any) -> Any:
    return batch.data if isinstance(batch, UserDict) else batch


def _is_few(thing: Any, kinds: tuple[type, ...], most: int = FEW) -> bool:
    kind: Any = type(thing)
    return container_of(kind) in kinds and len(thing) <= most
