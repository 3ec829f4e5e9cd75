"""What some code binds, read from its bytecode."""

from __future__ import annotations

import dis
import functools
from types import CodeType
from typing import NamedTuple

_Step = dis.Instruction
_BINDS = ("STORE_", "DELETE_")
_BETWEEN = ("SWAP", "ROT_", "NOP", "EXTENDED_ARG")
"""Steps that may come between those that count: they order the stack, or belong to the step after them."""
_CHANGES = frozenset(("pop", "popitem", "setdefault", "update", "clear", "__setitem__"))


class Stores(NamedTuple):
    """What some code binds: its free names, globals, attributes (of anything).

    ``keys``: whether it changes dicts. ``counts``: whether it counts in some.
    """

    free: frozenset[str]
    known: frozenset[str]
    attributes: frozenset[str]
    keys: bool
    counts: bool


@functools.lru_cache(maxsize=4096)
def stores_of(code: CodeType) -> Stores:
    """What code binds, and the functions within it.

    A name that is only counted up (``calls += 1``) counts passes, unless the code binds others beside it: then it may
    be what a sum is divided by. An attribute is state like any.
    """
    inner = [stores_of(each) for each in code.co_consts if isinstance(each, CodeType)]
    steps = _steps(code)
    counts = [False] * 3 + [_counts(*steps[i - 3 : i + 1]) for i in range(3, len(steps))]
    bound: dict[str, set[str]] = {"free": set(), "known": set(), "attributes": set()}
    counted: dict[str, set[str]] = {kind: set() for kind in bound}
    items: list[bool] = []
    for step, counting in zip(steps, counts, strict=False):
        kind = _binds(step)
        if kind == "items":
            items.append(counting)
        elif kind is not None:
            (counted if counting and kind != "attributes" else bound)[kind] |= _names(step)
    if bound["free"] or bound["known"]:
        bound = {kind: names | counted[kind] for kind, names in bound.items()}
    keys = not all(items) or not _CHANGES.isdisjoint(code.co_names)
    return Stores(
        frozenset(bound["free"].union(*(s.free for s in inner)) & set(code.co_freevars)),
        frozenset(bound["known"]).union(*(s.known for s in inner)),
        frozenset(bound["attributes"]).union(*(s.attributes for s in inner)),
        keys or any(s.keys for s in inner),
        any(items) or any(s.counts for s in inner),
    )


def _steps(code: CodeType) -> list[_Step]:
    try:
        return [step for step in dis.get_instructions(code) if not step.opname.startswith(_BETWEEN)]
    except (LookupError, ValueError):  # somebody's own bytecode: a training goes on without a look at it
        return []


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
