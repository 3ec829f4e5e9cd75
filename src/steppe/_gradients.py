"""Gradients moved about: out of ``.grad`` and into it, put aside, and those that no optimizer of the method takes."""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from steppe._algebra import as_real
from steppe._clearing import Clearing
from steppe._optimizers import Stepper
from steppe._parameters import Entry, Parameters, parallel

Kept = tuple[Tensor, Tensor]
_SET_GRAD = vars(torch._C.TensorBase)["grad"].__set__
_GRAD, _TRAINED, _LAYOUT = attrgetter("grad"), attrgetter("requires_grad"), attrgetter("layout")
_NOTHING, _STRIDED = frozenset((type(None),)), frozenset((torch.strided,))


class Gradients:
    """The gradients of all parameters, by name; what is taken out of ``.grad`` belongs to who took it.

    Attributes:
        parameters: whose they are.
        have_others: whether the latest pass brought gradients of the model's parameters that the optimizer lacks.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.have_others = False
        self.clearing = Clearing(parameters)
        self._others: list[Kept] = []
        self._outside: list[weakref.ref[Tensor]] = []
        self._aside: list[Kept] | None = None

    def take(self, dense: bool = True) -> dict[str, Tensor]:
        """Take every gradient away from its parameter; those of parameters that the optimizer lacks are kept apart.

        A complex one is handed out as pairs of real numbers, and with ``dense`` a sparse one in full, so that no part
        meets anything else. That of a group that climbs (``maximize``) is turned round until :meth:`give`: every part
        sees a descent.
        """
        grads = self._found()
        others = _with_gradient(self.parameters.rest) if self.parameters.rest else []
        outside = self._outside_gradients()
        self.clear()
        if others:
            others = [(p, _own(g)) for p, g in others]
        self.have_others, self._others = bool(others), others + outside
        if not _common(grads.values()):
            _refuse_sparse(grads, self.parameters.entries, self.parameters.perturbable)
            grads = {n: as_real(_full(_own(g)) if dense else _own(g)) for n, g in grads.items()}
        self.turn(grads)
        return grads

    def _found(self) -> dict[str, Tensor]:
        """The gradients that an optimizer's step would take, by name."""
        owned = self.parameters.owned
        there = list(map(_GRAD, owned.values()))  # at the speed of C, as every pass asks
        if _NOTHING.isdisjoint(map(type, there)) and all(map(_TRAINED, owned.values())):
            return dict(zip(owned, there, strict=True))
        return {n: g for (n, p), g in zip(owned.items(), there, strict=True) if g is not None and p.requires_grad}

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
        known = {id(e.param) for e in self.parameters.entries} | {id(p) for p in self.outside()}
        new = {id(p): p for p in leaves if id(p) not in known}.values()
        self._outside += map(weakref.ref, new)
        if self._aside is not None:
            self._aside += [(p, p.grad) for p in new if p.grad is not None]
            for p in new:
                p.grad = None
        return bool(new)

    def outside(self) -> list[Tensor]:
        """The known leaves that are not the model's."""
        if not self._outside:
            return []
        found = [p for ref in self._outside if (p := ref()) is not None]
        if len(found) < len(self._outside):
            self._outside = [weakref.ref(p) for p in found]
        return found

    def _outside_gradients(self) -> list[Kept]:
        # Elsewhere than in `aside` nobody knows what was there before the pass.
        if self._aside is None or not self._outside:
            return []
        kept = [(p, p.grad) for p in self.outside() if p.requires_grad and p.grad is not None]
        for p, _ in kept:
            p.grad = None
        return [(p, _own(g)) for p, g in kept]

    def give(self, grads: dict[str, Tensor]) -> None:
        """Set the gradients; parameters without one keep what they have."""
        self.turn(grads)
        for name, param in self.parameters.owned.items():
            grad = grads.get(name)
            if grad is not None:
                param.grad = torch.view_as_complex(grad) if param.is_complex() and not grad.is_complex() else grad

    def turn(self, grads: dict[str, Tensor]) -> None:
        """Turn round, in place, the gradients of groups that climb: to a descent's view of them, and back."""
        climbing = self.parameters.optimizers.climbing()
        if True in climbing:
            mine = (e.name for e in self.parameters.entries if e.group is not None and climbing[e.group])
            for grad in (grads[name] for name in mine if name in grads):
                grad.neg_()

    def seen_by(self, which: int, entries: list[Entry]) -> dict[str, Tensor]:
        """The gradients that one optimizer's step takes, as a descent has them; not to be written on."""
        stepper = self.parameters.optimizers.steppers[which]
        grads = {e.name: as_real(e.param.grad) for e in entries if e.param.grad is not None}
        up = [Stepper(stepper.optimizer).climbs(g) for g in self.parameters.optimizers.param_groups]
        for entry in entries if any(up) else ():
            # A wrapper that climbs has turned them round by now.
            if entry.group is not None and up[entry.group]:
                grads[entry.name] = -grads[entry.name]
        return grads

    def clear(self) -> None:
        """Set every ``.grad`` to None."""
        every = self.parameters.all
        mine = every if all(map(_TRAINED, every)) else [p for p in every if p.requires_grad]
        deque(map(_SET_GRAD, mine, repeat(None)), 0)

    def there(self) -> bool:
        """Whether any gradient is there that the optimizer's step would take."""
        return bool(_with_gradient(self.parameters.owned.values()))

    def anywhere(self) -> bool:
        """Whether any parameter of the model has a gradient."""
        return any(p.grad is not None for p in self.parameters.all)

    def handed(self, which: int | None = None) -> list[Tensor]:
        """The gradients that the optimizer's step would take, of one optimizer or of all."""
        owner = self.parameters.owner
        mine = (e for e in self.parameters.entries if e.group is not None and which in (None, owner(e)))
        return [_full(e.param.grad) for e in mine if e.param.requires_grad and e.param.grad is not None]

    @contextmanager
    def aside(self, average: Callable[[list[Tensor]], None] = lambda grads: None) -> Iterator[None]:
        """Put the gradients that are there aside, and add them to the new ones; on an error leave them as they were.

        ``average`` is given those put aside before they are added. What the closure clears is not added.
        """
        there, slices = _with_gradient(self.parameters.all), list[Kept]()
        earlier = [(p, _own(g)) for p, g in there] if there else []
        self._aside = outside = []
        outside += self._outside_gradients()
        if earlier or outside:
            # Slices of a flat buffer of the user's; DistributedDataParallel and FSDP2 see to their own.
            hosts = self.parameters.sharded or parallel(self.parameters.model) is not None
            slices = [(p, g) for p, g in there if g._is_view()] if not hosts else []
            self.clear()
            self.clearing.begin(earlier, outside, hosts)
        try:
            yield
        except BaseException:
            self.clear()
            for param in self.outside():
                param.grad = None
            for param, grad in [*earlier, *outside]:
                param.grad = grad
            _put_into(slices)
            raise
        finally:
            self._aside = None
            self.clearing.over()
        if not (earlier or outside):
            return
        earlier, outside, slices = map(self.clearing.kept, (earlier, outside, slices))
        if earlier:
            average([g for _, g in earlier])
        for param, grad in [*earlier, *outside]:
            param.grad = grad if param.grad is None else _sum(grad, param.grad)
        _put_into(slices)

    def __getstate__(self) -> dict[str, Any]:
        """What is outside the model is not copied with it."""
        return vars(self) | {"_outside": [], "_aside": None}


def aligned(clean: dict[str, Tensor], perturbed: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both with the same names in the same order; a gradient missing in one pass is zero there."""
    for one, other in ((clean, perturbed), (perturbed, clean)):
        one.update({k: torch.zeros_like(g) for k, g in other.items() if k not in one})
    return clean, {k: perturbed[k] for k in clean}


def _common(grads: Collection[Tensor]) -> bool:
    """Whether all are dense and real and own their storage."""
    dense = _STRIDED.issuperset(map(_LAYOUT, grads)) and not _in_graphs()
    return dense and not any(map(Tensor._is_view, grads)) and not any(map(Tensor.is_complex, grads))


def _with_gradient(params: Collection[nn.Parameter]) -> list[Kept]:
    """The trainable ones that have a gradient, and it."""
    there = list(map(_GRAD, params))
    if _NOTHING.issuperset(map(type, there)):
        return []
    return [(p, g) for p, g in zip(params, there, strict=True) if g is not None and p.requires_grad]


def _own(grad: Tensor) -> Tensor:
    # A view is a slice of somebody's flat buffer (DDP's buckets), which the next pass would overwrite.
    return grad.clone() if grad._is_view() or _in_graphs() else grad


def _in_graphs() -> bool:
    """Whether torch.compile has made CUDA graphs: gradients lie in their memory, which the next pass writes over."""
    trees: Any = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is None or not torch.cuda.is_initialized():
        return False
    return trees.get_manager(torch.cuda.current_device(), create_if_none_exists=False) is not None


def _refuse_sparse(grads: dict[str, Tensor], entries: list[Entry], perturbable: Callable[[Entry], bool]) -> None:
    sparse = {name for name, grad in grads.items() if grad.layout is not torch.strided}
    for entry in entries if sparse else ():
        if entry.name in sparse and perturbable(entry):
            raise ValueError(
                f"{entry.name} has a sparse gradient, whose perturbation is not defined here: use sparse=False, or do "
                "not perturb it: perturb=False in its group, or an optimizer of its own"
            )


def _full(grad: Tensor) -> Tensor:
    return grad if grad.layout is torch.strided else grad.to_dense()


@torch.no_grad()
def _put_into(slices: list[Kept]) -> None:
    """Have the gradients that are there in the tensors that they were in before."""
    for param, piece in slices:
        assert param.grad is not None
        piece.copy_(param.grad)
        param.grad = piece


def _sum(grad: Tensor, new: Tensor) -> Tensor:
    """The sum, in the storage of ``grad`` where both are of one layout."""
    if grad.layout is new.layout:
        return grad.add_(new)
    return new + grad if new.layout is torch.strided else grad + new
