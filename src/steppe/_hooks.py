"""What runs in a model that may move something outside of modules: hooks, and methods that name such things."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from steppe._nested import container_of
from steppe._reach import names_in, read_by
from steppe._spaces import classes_of, is_foreign, is_of_users_module, is_written_by_users, members_of, space_of
from steppe._stores import stores_of

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def run_within(model: nn.Module, names: set[str]) -> Iterator[Any]:
    """Its hooks, and of each of the user's classes of modules what runs and names things that are no module's.

    ``names``: in the code that has the model.
    """
    waiting, kinds = [model], dict[type, None]()
    while waiting:
        module = waiting.pop()
        kinds[type(module)] = None
        waiting += [each for each in module._modules.values() if each is not None]
        for hooks in map(vars(module).get, _HOOKS):
            if hooks:
                yield from (hook for hook in hooks.values() if not is_foreign(hook))
    for each in dict.fromkeys(each for kind in kinds for each in classes_of(kind)):
        yield from filter(_reaches_out, _methods_of(each, {"forward", *names}))


def _methods_of(kind: type, names: set[str]) -> Iterator[FunctionType]:
    """Its methods of these names, and those that they call."""
    waiting, there = list(names), vars(kind)
    for name in waiting:  # which grows
        if type(member := there.get(name)) is FunctionType:
            yield member
            waiting += [each for each in names_in(member.__code__) if each in there and each not in waiting]


def _reaches_out(method: FunctionType) -> bool:
    stores = stores_of(method.__code__)
    return bool(stores.free or stores.known) or any(map(_may_be_state, read_by(method)))


def _may_be_state(thing: Any) -> bool:
    kind: Any = type(thing)
    if isinstance(thing, type):
        return bool(members_of(thing))
    if kind is FunctionType:
        return is_of_users_module(thing.__module__)
    if kind is ModuleType:
        return is_written_by_users(thing)
    return container_of(kind) not in (None, tuple) or space_of(thing) is not None
