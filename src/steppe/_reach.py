"""What a function of the user's can reach without being run: modules, and whatever was compiled."""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

DEEP, MANY = 5, 64
"""So many steps away, and so many things within one that holds things."""


class Around:
    """Steppe's own lines around a function of the user's, whose attributes it shows: who looks at it sees the user's.

    Attributes:
        users: that function.
    """

    def __init__(self, users: Any) -> None:
        self.users = users

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The lines, and the function among them."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self.users, name)


_PLAIN = (str, bytes, int, float, complex, type(None), type, ModuleType, Tensor)


def users(function: Any) -> Any:
    """The user's own function, without steppe's lines around it."""
    if isinstance(function, functools.partial) and isinstance(function.func, Around):
        return functools.partial(users(function.func), *function.args, **function.keywords)
    return users(function.users) if isinstance(function, Around) else function


def reached(function: Any) -> list[Any]:
    """The modules and functions that it holds, names, or finds in an object that it holds or names; itself included."""
    seen: dict[int, Any] = {}
    here = [function]
    for _ in range(DEEP):
        here = [each for each in here if not isinstance(each, _PLAIN) and id(each) not in seen]
        seen |= {id(each): each for each in here}
        here = [beneath for each in here for beneath in below(each)]
    return [each for each in seen.values() if isinstance(each, nn.Module) or callable(each)]


def read_by(function: Any) -> list[Any]:
    """What a function names, has as defaults or closes over, without looking further; nothing of what has no code."""
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    held = [*map(function.__globals__.get, names_in(code)), *(function.__defaults__ or ())]
    for cell in function.__closure__ or ():  # as closed_over_by, without a call: every step asks
        try:
            held.append(cell.cell_contents)
        except ValueError:
            continue
    return held


def made_by(container: Any) -> list[Any]:
    """What a dict makes its items of: there may be none as yet."""
    factory = getattr(container, "default_factory", None) if isinstance(container, defaultdict) else None
    return [factory, *read_by(factory)] if type(factory) in (type, FunctionType) else []


def closed_over_by(function: Any) -> list[Any]:
    """What is in the cells of a function; nothing of what has none."""
    held = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # empty as yet
            continue
    return held


def anything_compiled() -> bool:
    """Whether torch.compile was called in this process."""
    loaded = sys.modules.get("torch._dynamo.eval_frame")
    return loaded is not None and bool(getattr(loaded, "cached_backends", True))


def is_compiled(thing: Any) -> bool:
    """Whether a module, a part of one, or a function was compiled."""
    if isinstance(thing, nn.Module):
        return any(
            type(m).__name__ == "OptimizedModule" or m._compiled_call_impl is not None or is_compiled(m.forward)
            for m in thing.modules()
        )
    return hasattr(thing, "_torchdynamo_orig_callable") and not hasattr(thing, "_torchdynamo_disable")


def below(thing: Any) -> Iterable[Any]:
    """What it holds or names itself."""
    if isinstance(thing, nn.Module):
        return ()  # a module comes with its own
    if isinstance(thing, FunctionType):
        return _of_function(thing)
    if isinstance(thing, MethodType):
        return thing.__self__, thing.__func__
    if isinstance(thing, functools.partial):
        return thing.func, *thing.args, *thing.keywords.values()
    if isinstance(thing, Mapping):
        return list(thing.values())[:MANY]
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)[:MANY]
    return list(getattr(thing, "__dict__", {}).values())[:MANY]


def _of_function(function: FunctionType) -> Iterator[Any]:
    yield from closed_over_by(function)
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    names, known = names_in(function.__code__), function.__globals__
    yield from (known[name] for name in names if name in known)


@functools.lru_cache(maxsize=4096)
def names_in(code: CodeType) -> tuple[str, ...]:
    """The names of globals and attributes in it, and in functions within it.

    A generator expression is such a function and, before Python 3.12, every comprehension.
    """
    inner = (names_in(each) for each in code.co_consts if isinstance(each, CodeType))
    return tuple(dict.fromkeys(chain(code.co_names, *inner)))


@functools.lru_cache(maxsize=4096)
def words_in(code: CodeType) -> tuple[str, ...]:
    """The texts in it that may be names: of what ``getattr`` and ``setattr`` are handed."""
    inner = (words_in(each) for each in code.co_consts if isinstance(each, CodeType))
    mine = (each for each in code.co_consts if isinstance(each, str) and each.isidentifier())
    return tuple(dict.fromkeys(chain(mine, *inner)))
