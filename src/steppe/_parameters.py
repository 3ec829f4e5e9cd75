"""The parameters a gradient is taken for: their names and their optimizer groups, found once for each set of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from steppe._kinds import scales_and_shifts
from steppe._optimizers import Optimizers
from steppe._shards import is_sharded
from steppe._tree import Renames, Tree
from steppe._words import count

Subset = str | Callable[[str, Tensor], bool]


_WRAPPERS = ("_orig_mod", "_forward_module")  # of torch.compile and of Lightning's Fabric


def layers(model: nn.Module) -> Iterator[nn.Module]:
    """The model and, one after the other, what it wraps: DistributedDataParallel, torch.compile, Fabric."""
    yield model
    held = model.__dict__.get("_modules") or {}
    inside = [held[name] for name in _WRAPPERS if name in held]
    inside += [model.module] if isinstance(model, (DistributedDataParallel, nn.DataParallel)) else []
    for inner in inside:
        if isinstance(inner, nn.Module):
            yield from layers(inner)
            return


def bare(model: nn.Module) -> nn.Module:
    """The innermost model, so that names stay the same with and without wrappers."""
    return list(layers(model))[-1]


def parallel(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel among the wrappers."""
    return next((m for m in layers(model) if isinstance(m, DistributedDataParallel)), None)


def without_sync(wrapper: DistributedDataParallel | None) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context in which a backward leaves the ranks' gradients unaveraged; an empty one without ranks.

    And under ``static_graph``, where torch cannot leave them so: averages of sums are the same, at an all-reduce each.
    """
    return nullcontext if wrapper is None or wrapper.static_graph else wrapper.no_sync


def names_of(model: nn.Module) -> dict[nn.Parameter, str]:
    """Parameter -> name; a tied parameter has its first name, a compiled submodule's prefix is left out."""
    return {p: name.replace("_orig_mod.", "") for name, p in bare(model).named_parameters()}


@dataclass(frozen=True)
class Entry:
    """One parameter: its name, its optimizer group (None: not in this optimizer), and whether the subset holds it."""

    name: str
    param: nn.Parameter
    group: int | None
    inside: bool


class Moved:
    """Flat lists of what the ascent may move, made once as long as parameters, groups and radii stay.

    Attributes:
        of: the groups' radii that it was made of.
        radii: name -> radius. params: name -> parameter. groups: name -> number of its group.
        names: the same names. tensors: the same parameters.
        any: whether any radius is above zero. alike: whether all are one.
    """

    def __init__(self, of: list[float | None], moved: list[tuple[Entry, float]]) -> None:
        self.of = of
        self.names = [e.name for e, _ in moved]
        self.radii = {e.name: rho for e, rho in moved}
        self.params: dict[str, Tensor] = {e.name: e.param for e, _ in moved}
        self.tensors = list(self.params.values())
        self.groups = {e.name: e.group or 0 for e, _ in moved}
        self.any = any(rho > 0 for _, rho in moved)
        self.alike = len(set(self.radii.values())) == 1


class Parameters:
    """All parameters of the model that may get a gradient, in the model's order.

    Attributes:
        entries: as of the latest :meth:`refresh`; the lists below are made of it once.
        all: the parameters. owned: name -> parameter of those that an optimizer steps. rest: the others.
        sharded: whether any is spread over processes (FSDP2).
    """

    def __init__(self, model: nn.Module, optimizers: Optimizers, subset: Subset) -> None:
        self.model, self.optimizers, self.subset = model, optimizers, subset
        self.entries: list[Entry] = []
        self.all: list[nn.Parameter] = []
        self.owned: dict[str, nn.Parameter] = {}
        self.rest: list[nn.Parameter] = []
        self.sharded = False
        self._owners: list[int] = []
        self._moved: Moved | None = None
        self._tree = Tree(bare(model))
        self._left: set[Tensor] = set()  # still in the optimizer, but no longer in the model
        self.refresh()
        if not any(self.perturbable(e) for e in self.entries):
            raise ValueError(
                f"nothing to perturb: subset={self.subset!r} and the groups' perturb flags leave no parameter of the "
                "optimizer; choose another subset or set perturb=True in a group"
            )

    def refresh(self) -> Renames:
        """Find the parameters anew if modules, parameters or the optimizer's groups were exchanged, added or renamed.

        Returns:
            What has happened to those that were known: old name -> present name, None where it is gone.
        """
        groups = self.optimizers.param_groups
        if not self._tree.changed(groups):
            return {}
        before, left = self.entries, self._left
        known = {e.param for e in before}
        self._check(known | left)
        self._note(self._find())
        if self._left - left and not self.sharded:
            self._tell([e.name for e in self.strangers() if e.param not in known])
        # FSDP2 exchanges its parameters for whole ones within a pass: there only the groups tell.
        self._tree.note(groups, modules=not self.sharded)
        here = {e.param: e.name for e in self.entries}
        return {e.name: here.get(e.param) for e in before if here.get(e.param) != e.name}

    def _tell(self, new: list[str]) -> None:
        if new:
            warnings.warn(
                "the optimizer still holds parameters that have left the model, and lacks "
                f"{count(len(new), 'new one')}, the first {new[0]}, which no step will move: add what is new "
                "(optimizer.add_param_group), or build optimizer and method after the change",
                stacklevel=6,
            )

    @property
    def regrouped(self) -> bool:
        """Whether the optimizer's groups tell at a glance that there is something to be found."""
        return self._tree.regrouped(self.optimizers.param_groups)

    def _note(self, entries: list[Entry]) -> None:
        self.entries, self._owners, self._moved = entries, self.optimizers.owners(), None
        self.all = [e.param for e in entries]
        self.owned = {e.name: e.param for e in entries if e.group is not None}
        self.rest = [e.param for e in entries if e.group is None]
        self.sharded = any(is_sharded(p) for p in self.all)

    def moved(self, radii: list[float | None]) -> Moved:
        """What the ascent may move, of groups with these radii; None: not this group."""
        if self._moved is None or self._moved.of != radii:
            inside = ((e, radii[e.group]) for e in self.entries if e.inside and e.group is not None)
            self._moved = Moved(radii, [(e, rho) for e, rho in inside if rho is not None])
        return self._moved

    def group_of(self, entry: Entry) -> dict[str, Any]:
        """The optimizer's group of an entry that has one."""
        assert entry.group is not None
        return self.optimizers.param_groups[entry.group]

    @property
    def count(self) -> int:
        """How many optimizers there are."""
        return len(self.optimizers.steppers)

    def owner(self, entry: Entry) -> int | None:
        """The number of the optimizer that steps this parameter; None: none that is known."""
        return None if entry.group is None else self._owners[entry.group]

    def strangers(self) -> list[Entry]:
        """Trainable parameters that no known optimizer steps."""
        return [e for e in self.entries if e.group is None and e.param.requires_grad]

    def perturbable(self, entry: Entry) -> bool:
        """Whether the ascent may move this parameter."""
        return entry.inside and entry.group is not None and bool(self.group_of(entry).get("perturb", True))

    def _find(self) -> list[Entry]:
        _refuse_lazy(bare(self.model))
        names, groups = names_of(self.model), self._groups()
        inside = self._subset_names(names)
        return [Entry(n, p, groups.get(p), n in inside) for p, n in names.items()]

    def _groups(self) -> dict[nn.Parameter, int]:
        return {p: i for i, g in enumerate(self.optimizers.param_groups) for p in g["params"]}

    def _subset_names(self, names: dict[nn.Parameter, str]) -> set[str]:
        if self.subset == "all":
            return set(names.values())
        if callable(self.subset):
            return {n for p, n in names.items() if self.subset(n, p)}
        return {names[p] for p in scales_and_shifts(bare(self.model))}

    def _check(self, known: set[Tensor]) -> None:
        names = names_of(self.model)
        outside = [p for p in self._groups() if p not in names]
        unknown = [p for p in outside if p not in known]
        if unknown:
            raise ValueError(
                f"the optimizer holds {len(unknown)} parameter(s) that the model does not, the first of shape "
                f"{tuple(unknown[0].shape)}: pass the module that owns all of them, "
                "such as nn.ModuleList([model, head]); what no module owns (a temperature) is made a parameter of the "
                "model by register_parameter"
            )
        for group in self.optimizers.asking:
            _check_group(group)
        self._left = set(outside)


def _check_group(group: dict[str, Any]) -> None:
    rho = group.get("rho")
    if rho is not None and (isinstance(rho, bool) or not isinstance(rho, (int, float)) or not 0 <= rho < float("inf")):
        raise ValueError(
            f"an optimizer group has rho={rho!r}; expected a finite number of at least 0, or no rho at all"
        )
    if not isinstance(group.get("perturb", True), bool):
        raise ValueError(f"an optimizer group has perturb={group['perturb']!r}; expected True or False")


def _refuse_lazy(model: nn.Module) -> None:
    lazy = [name for name, t in chain(model.named_parameters(), model.named_buffers()) if is_lazy(t)]
    if lazy:
        raise ValueError(
            f"the model holds {len(lazy)} lazy tensor(s) without a shape as yet, the first {lazy[0]}; expected a model "
            "that is whole: run one batch through the model first, then build this"
        )
