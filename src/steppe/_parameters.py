"""The parameters a gradient is taken for: their names, their optimizer groups, and their ``.grad`` moved about."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from steppe._algebra import as_real
from steppe._kinds import scales_and_shifts
from steppe._optimizers import Optimizers, Stepper
from steppe._shards import is_sharded
from steppe._tree import Renames, Tree

Kept = tuple[Tensor, Tensor]
Subset = str | Callable[[str, Tensor], bool]


_WRAPPERS = ("_orig_mod", "_forward_module")  # of torch.compile and of Lightning's Fabric


def layers(model: nn.Module) -> Iterator[nn.Module]:
    """The model and, one after the other, what it wraps: DistributedDataParallel, torch.compile, Fabric."""
    yield model
    inside = [getattr(model, name, None) for name in _WRAPPERS]
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


def without_sync(model: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context in which a backward leaves the ranks' gradients unaveraged; an empty one without ranks."""
    wrapper = parallel(model)
    return wrapper.no_sync if wrapper else nullcontext


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


class Parameters:
    """All parameters of the model that may get a gradient, in the model's order.

    Attributes:
        entries: as of the latest :meth:`look_again`. sharded: whether any is spread over processes (FSDP2).
        have_others: whether the latest pass brought gradients of the model's parameters that the optimizer lacks.
    """

    def __init__(self, model: nn.Module, optimizers: Optimizers, subset: Subset) -> None:
        self.model, self.optimizers, self.subset = model, optimizers, subset
        self.entries: list[Entry] = []
        self.sharded = False
        self._owners: list[int] = []
        self._tree = Tree(bare(model))
        self._left: set[Tensor] = set()  # still in the optimizer, but no longer in the model
        self._others: list[Kept] = []
        self.have_others = False
        self._outside: list[weakref.ref[Tensor]] = []
        self._aside: list[Kept] | None = None
        self.look_again()
        if not any(self.perturbable(e) for e in self.entries):
            raise ValueError(
                f"nothing to perturb: subset={self.subset!r} and the groups' perturb flags leave no parameter of the "
                "optimizer; choose another subset or set perturb=True in a group"
            )

    def look_again(self) -> Renames:
        """Find the parameters anew if modules, parameters or the optimizer's groups were exchanged, added or renamed.

        Returns:
            What has happened to those that were known: old name -> present name, None where it is gone.
        """
        groups = self.optimizers.param_groups
        if not self._tree.changed(groups):
            return {}
        before = self.entries
        self._check({e.param for e in before} | self._left)
        self.entries, self._owners = self._find(), self.optimizers.owners()
        self.sharded = any(is_sharded(e.param) for e in self.entries)
        # FSDP2 exchanges its parameters for whole ones within a pass: there only the groups tell.
        self._tree.note(groups, modules=not self.sharded)
        here = {e.param: e.name for e in self.entries}
        return {e.name: here.get(e.param) for e in before if here.get(e.param) != e.name}

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

    def take(self, dense: bool = True) -> dict[str, Tensor]:
        """Take every gradient away from its parameter; those of parameters that the optimizer lacks are kept apart.

        A complex one is handed out as pairs of real numbers, and with ``dense`` a sparse one in full, so that no part
        meets anything else. That of a group that climbs (``maximize``) is turned round until :meth:`give`: every part
        sees a descent.
        """
        there = [(e, e.param.grad) for e in self.entries if e.param.requires_grad and e.param.grad is not None]
        outside = self._outside_gradients()
        self.clear()
        _refuse_sparse({e.name: g for e, g in there if self.perturbable(e)})
        owned = [(e, g.clone() if g._is_view() else g) for e, g in there]  # a view is a slice of DDP's buckets
        self._others = [(e.param, g) for e, g in owned if e.group is None]
        self.have_others = bool(self._others)
        self._others += outside
        grads = {e.name: as_real(_full(g) if dense else g) for e, g in owned if e.group is not None}
        self.turn(grads)
        return grads

    def drop_others(self) -> None:
        """Another pass will bring the others' gradients."""
        self._others = []

    def give_others(self) -> None:
        """Leave the latest pass's gradients where the optimizer does not look: they are no part of the method."""
        others, self._others = self._others, []
        for param, grad in others:
            param.grad = grad

    def meet(self, leaves: Iterable[Tensor]) -> bool:
        """Note trainable tensors that a loss depends on: those outside the model are others too, within :meth:`aside`.

        Returns:
            Whether there were any that were not known.
        """
        known = {id(e.param) for e in self.entries} | {id(p) for p in self.outside()}
        new = {id(p): p for p in leaves if id(p) not in known}.values()
        self._outside += map(weakref.ref, new)
        if self._aside is not None:
            self._aside += [(p, p.grad) for p in new if p.grad is not None]
            for p in new:
                p.grad = None
        return bool(new)

    def outside(self) -> list[Tensor]:
        """The known leaves that are not the model's."""
        found = [p for ref in self._outside if (p := ref()) is not None]
        if len(found) < len(self._outside):
            self._outside = [weakref.ref(p) for p in found]
        return found

    def _outside_gradients(self) -> list[Kept]:
        # Elsewhere than in `aside` nobody knows what was there before the pass.
        there = self.outside() if self._aside is not None else ()
        kept = [(p, p.grad) for p in there if p.requires_grad and p.grad is not None]
        for p, _ in kept:
            p.grad = None
        return [(p, _own(g)) for p, g in kept]

    def give(self, grads: dict[str, Tensor]) -> None:
        """Set the gradients; parameters without one keep what they have."""
        self.turn(grads)
        for entry in self.entries:
            if entry.name in grads:
                grad = grads[entry.name]
                entry.param.grad = torch.view_as_complex(grad) if _is_pairs(grad, entry.param) else grad

    def turn(self, grads: dict[str, Tensor]) -> None:
        """Turn round, in place, the gradients of groups that climb: to a descent's view of them, and back."""
        climbing = self.optimizers.climbing()
        if any(climbing):
            mine = (e for e in self.entries if e.group is not None and climbing[e.group] and e.name in grads)
            for grad in (grads[e.name] for e in mine):
                grad.neg_()

    def seen_by(self, which: int, entries: list[Entry]) -> dict[str, Tensor]:
        """The gradients that one optimizer's step takes, as a descent has them; not to be written on."""
        stepper = self.optimizers.steppers[which]
        grads = {e.name: as_real(e.param.grad) for e in entries if e.param.grad is not None}
        for entry in entries:
            # A wrapper that climbs has turned them round by now.
            if Stepper(stepper.optimizer).climbs(self.group_of(entry)):
                grads[entry.name] = -grads[entry.name]
        return grads

    def clear(self) -> None:
        """Set every ``.grad`` to None."""
        for entry in self.entries:
            if entry.param.requires_grad:
                entry.param.grad = None

    def have_gradients(self) -> bool:
        """Whether any gradient is there that the optimizer's step would take."""
        return any(e.param.grad is not None for e in self.entries if e.group is not None and e.param.requires_grad)

    def handed(self, which: int | None = None) -> list[Tensor]:
        """The gradients that the optimizer's step would take, of one optimizer or of all."""
        owned = (e for e in self.entries if e.group is not None and which in (None, self.owner(e)))
        return [_full(e.param.grad) for e in owned if e.param.requires_grad and e.param.grad is not None]

    @contextmanager
    def aside(self, average: Callable[[list[Tensor]], None] = lambda grads: None) -> Iterator[None]:
        """Put the gradients that are there aside, and add them to the new ones; on an error leave them as they were.

        ``average`` is given those put aside before they are added.
        """
        trained = [e.param for e in self.entries if e.param.requires_grad]
        earlier = [(p, None if p.grad is None else _own(p.grad)) for p in trained]
        if any(g is not None for _, g in earlier):
            self.clear()
        self._aside = outside = []
        outside += self._outside_gradients()
        try:
            yield
        except BaseException:
            for param in self.outside():
                param.grad = None
            for param, grad in [*earlier, *outside]:
                param.grad = grad
            raise
        finally:
            self._aside = None
        average([g for _, g in earlier if g is not None])
        for param, grad in [*earlier, *outside]:
            if grad is not None:
                param.grad = grad if param.grad is None else _sum(grad, param.grad)

    def __getstate__(self) -> dict[str, Any]:
        """What is outside the model is not copied with it."""
        return vars(self) | {"_outside": [], "_aside": None}

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
                "such as nn.ModuleList([model, head])"
            )
        for group in self.optimizers.param_groups:
            _check_group(group)
        self._left = set(outside)


def aligned(clean: dict[str, Tensor], perturbed: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both with the same names in the same order; a gradient missing in one pass is zero there."""
    for one, other in ((clean, perturbed), (perturbed, clean)):
        one.update({k: torch.zeros_like(g) for k, g in other.items() if k not in one})
    return clean, {k: perturbed[k] for k in clean}


def _own(grad: Tensor) -> Tensor:
    # A view is a slice of somebody's flat buffer (DDP's buckets), which the next pass would overwrite.
    return grad.clone() if grad._is_view() else grad


def _is_pairs(grad: Tensor, param: Tensor) -> bool:
    return param.is_complex() and not grad.is_complex()


def _check_group(group: dict[str, Any]) -> None:
    rho = group.get("rho")
    if rho is not None and (isinstance(rho, bool) or not isinstance(rho, (int, float)) or not 0 <= rho < float("inf")):
        raise ValueError(
            f"an optimizer group has rho={rho!r}; expected a finite number of at least 0, or no rho at all"
        )
    if not isinstance(group.get("perturb", True), bool):
        raise ValueError(f"an optimizer group has perturb={group['perturb']!r}; expected True or False")


def _refuse_sparse(grads: dict[str, Tensor]) -> None:
    for name, grad in grads.items():
        if grad.layout is not torch.strided:
            raise ValueError(
                f"{name} has a sparse gradient, whose perturbation is not defined here: use sparse=False, or do not "
                "perturb it: perturb=False in its group, or an optimizer of its own"
            )


def _refuse_lazy(model: nn.Module) -> None:
    lazy = [name for name, t in chain(model.named_parameters(), model.named_buffers()) if is_lazy(t)]
    if lazy:
        raise ValueError(
            f"the model holds {len(lazy)} lazy tensor(s) without a shape as yet, the first {lazy[0]}; expected a model "
            "that is whole: run one batch through the model first, then build this"
        )


def _full(grad: Tensor) -> Tensor:
    return grad if grad.layout is torch.strided else grad.to_dense()


def _sum(grad: Tensor, new: Tensor) -> Tensor:
    """The sum, in the storage of ``grad`` where both are of one layout."""
    if grad.layout is new.layout:
        return grad.add_(new)
    return new + grad if new.layout is torch.strided else grad + new
