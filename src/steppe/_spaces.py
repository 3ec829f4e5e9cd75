"""What is the user's own, and where its attributes lie: of objects, also with ``__slots__``, classes and functions."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

_ALWAYS_INSTALLED = ("steppe", "torch")  # wherever they lie: torch may be built in its own folder
_FOREIGN = frozenset(("torch", "steppe", "numpy", "builtins", "logging"))
_PLAIN = frozenset(("builtins", "abc", "collections", "dataclasses", "types", "typing"))
_CODE = (FunctionType, property, classmethod, staticmethod, MemberDescriptorType, GetSetDescriptorType)
_OTHERS = (nn.Module, Tensor, ModuleType)


class OfClass(MutableMapping[str, Any]):
    """What a class has, which cannot be written but by ``setattr``."""

    def __init__(self, kind: type) -> None:
        self._kind, self._there = kind, vars(kind)

    def __getitem__(self, name: str) -> Any:
        return self._there[name]

    def __contains__(self, name: object) -> bool:
        return name in self._there

    def __setitem__(self, name: str, value: Any) -> None:
        type.__setattr__(self._kind, name, value)

    def __delitem__(self, name: str) -> None:
        if name not in self._there:
            raise KeyError(name)
        type.__delattr__(self._kind, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._there)

    def __len__(self) -> int:
        return len(self._there)


class OfSlots(MutableMapping[str, Any]):
    """What an object has in slots and, where a class of its has none, in its dict beside them."""

    def __init__(self, thing: Any, slots: dict[str, Any]) -> None:
        self._thing, self._slots = thing, slots

    def __getitem__(self, name: str) -> Any:
        if name not in self._slots:
            return getattr(self._thing, "__dict__", {})[name]
        try:
            return self._slots[name].__get__(self._thing)
        except AttributeError:  # empty as yet
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        object.__setattr__(self._thing, name, value)  # frozen ones too

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        object.__delattr__(self._thing, name)

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in self._slots if name in self)
        yield from getattr(self._thing, "__dict__", ())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def space_of(thing: Any) -> MutableMapping[str, Any] | None:
    """The attributes of an object or a class of the user's own, or of a function; a model's are looked at elsewhere."""
    kind: Any = type(thing)
    if isinstance(thing, type):
        return OfClass(thing) if is_of_users(thing) and thing is not SimpleNamespace else None
    if kind is FunctionType:
        return None if is_foreign(thing) else vars(thing)
    if isinstance(thing, _OTHERS) or is_foreign(kind):
        return None
    if slots := slots_of(kind):
        return OfSlots(thing, slots)
    found = getattr(thing, "__dict__", None)
    return found if isinstance(found, dict) else None


@functools.lru_cache(maxsize=4096)
def slots_of(kind: Any) -> dict[str, Any]:
    """The slots of a class of the user's own."""
    own = [each for each in kind.__mro__ if "__slots__" in vars(each) and is_of_users(each)]
    return {name: slot for each in own for name, slot in vars(each).items() if type(slot) is MemberDescriptorType}


@functools.lru_cache(maxsize=4096)
def classes_of(kind: Any) -> tuple[type, ...]:
    """It and what it is derived of, as far as the user has written that."""
    return tuple(each for each in kind.__mro__ if is_of_users(each) and each is not SimpleNamespace)


@functools.lru_cache(maxsize=4096)
def members_of(kind: Any) -> tuple[tuple[type, str], ...]:
    """The user's classes among it and what it is derived of, with names at which each has what is no code: state."""
    return tuple(
        (each, name)
        for each in classes_of(kind)
        for name, value in vars(each).items()
        if not name.startswith("__") and not isinstance(value, _CODE)
    )


@functools.lru_cache(maxsize=4096)
def is_whole(kind: Any) -> bool:
    """Whether nobody but the user has a hand in what its objects hold."""
    return is_of_users(kind) and all(is_of_users(each) or each.__module__ in _PLAIN for each in kind.__mro__)


def is_foreign(thing: Any) -> bool:
    """Whether a function or a class is not to be looked into."""
    return str(getattr(thing, "__module__", "")).partition(".")[0] in _FOREIGN


@functools.lru_cache(maxsize=4096)
def is_of_users(kind: Any) -> bool:
    """Whether a class is the user's own: the insides of those of Python and of what is installed are left alone."""
    if kind is SimpleNamespace:
        return True
    return is_of_users_module(str(getattr(kind, "__module__", "")))


@functools.lru_cache(maxsize=4096)
def is_of_users_module(name: str) -> bool:
    """Whether the module of this name is the user's own."""
    module = sys.modules.get(name)
    return name == "__main__" or (module is not None and is_written_by_users(module))


def is_written_by_users(module: ModuleType) -> bool:
    """Whether a module of Python is the user's own."""
    file, root = getattr(module, "__file__", None) or "", module.__name__.partition(".")[0]
    if not file or root in _ALWAYS_INSTALLED or root in sys.stdlib_module_names:
        return False
    top = Path(getattr(sys.modules.get(root), "__file__", None) or file)
    return "-packages" not in file and not _has_records(top.parents[top.stem == "__init__"])


@functools.cache
def _has_records(folder: Path) -> bool:
    """Whether pip installed into it: a folder need not be called site-packages (``pip install --target``)."""
    return any(folder.glob("*.dist-info"))
