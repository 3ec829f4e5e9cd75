"""A model that changes in mid-training: whether it is the one that was noted, and memory that follows its names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain
from operator import is_, itemgetter
from typing import Any

from torch import Tensor, nn

Renames = dict[str, str | None]
_PARAMS = itemgetter("params")


class Tree:
    """Whether a model's modules and parameters, and an optimizer's groups, are the ones that were noted.

    Objects are compared and kept, not their ids, which come back when an object is freed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._views: list[Collection[Any]] = []  # live: made once, they show what is there
        self._sizes: list[int] = []
        self._full: list[Collection[Any]] = []  # those that are not empty
        self._noted: list[Any] = []
        self._lengths: list[int] = []  # of the groups

    def note(self, groups: list[dict[str, Any]], modules: bool = True) -> None:
        """Remember how it is now; without ``modules``, of the groups alone."""
        # A scripted module shows something else than a dict, in which nothing is exchanged.
        tree = [m for m in self._model.modules() if isinstance(m._modules, dict)] if modules else []
        self._views = [v for m in tree for v in (m._modules, m._modules.values(), m._parameters.values())]
        self._sizes = list(map(len, self._views))
        self._full = [v for v in self._views if len(v)]
        self._noted, self._lengths = list(self._now(groups)), _lengths(groups)

    def regrouped(self, groups: list[dict[str, Any]]) -> bool:
        """Whether there are more groups or fewer, or more parameters in one or fewer: what is known at a glance."""
        return _lengths(groups) != self._lengths

    def changed(self, groups: list[dict[str, Any]]) -> bool:
        """Whether anything is another than when it was noted, or nothing was."""
        # At the speed of C, as every call asks: sizes first, so that what is compared one by one is as long as it was.
        if not self._noted or self.regrouped(groups) or list(map(len, self._views)) != self._sizes:
            return True
        return not all(map(is_, self._now(groups), self._noted))

    def _now(self, groups: list[dict[str, Any]]) -> Iterator[Any]:
        return chain(chain.from_iterable(self._full), chain.from_iterable(map(_PARAMS, groups)), groups)

    def __getstate__(self) -> dict[str, Any]:
        """Copies note their own."""
        return {"_model": self._model, "_views": [], "_sizes": [], "_full": [], "_noted": [], "_lengths": []}


def _lengths(groups: list[dict[str, Any]]) -> list[int]:
    return list(map(len, map(_PARAMS, groups)))


def by_parameter(memory: Any, names: Collection[str]) -> bool:
    """Whether this is a dict with one item for each parameter: told by its keys, whatever it is called.

    Tensors of which one has a parameter's name are all of parameters, also of some that are not here.
    """
    if not isinstance(memory, dict) or not memory:
        return False
    known = [k in names for k in memory]
    return all(known) or (any(known) and all(isinstance(v, Tensor) for v in memory.values()))


def renamed(memory: Any, names: Renames, known: Collection[str]) -> Any:
    """Memory whose dicts by parameter follow the parameters; of those that are gone nothing is left.

    Args:
        memory: nested dicts.
        names: old name -> present name, None where the parameter is gone.
        known: all old names, by which a dict by parameter is told.
    """
    if not isinstance(memory, dict):
        return memory
    if not by_parameter(memory, known):
        return {k: renamed(v, names, known) for k, v in memory.items()}
    return {new: v for k, v in memory.items() if (new := names.get(k, k)) is not None}


def beside(fresh: Any, old: Any, others: Collection[str]) -> Any:
    """New memory of some parameters, with what the old one holds of others."""
    if not isinstance(fresh, dict):
        return fresh
    kept = {k: v for k, v in old.items() if k in others} if isinstance(old, dict) else {}
    return kept | {k: beside(v, old.get(k), others) if isinstance(old, dict) else v for k, v in fresh.items()}


def overlaid(fresh: Any, earlier: Any, others: Collection[str]) -> Any:
    """New memory, with what an earlier one holds of some parameters in the place of its own."""
    if not (isinstance(fresh, dict) and isinstance(earlier, dict)):
        return fresh
    inner = {k: overlaid(v, earlier.get(k), others) for k, v in fresh.items() if k not in others}
    return inner | {k: v for k, v in (fresh | earlier).items() if k in others}
