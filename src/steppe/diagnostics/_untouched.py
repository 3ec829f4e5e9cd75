"""A stretch of trying things out, after which nobody can tell that anything was tried."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe._backup import SavedWeights
from steppe._bound import Bound, held_by, places
from steppe._parameters import bare
from steppe._randomness import Randomness
from steppe._state import Watch


@contextmanager
def untouched(model: nn.Module, optimizer: Optimizer, loss_of: Any = None) -> Iterator[Optimizer]:
    """Lend ``model`` out together with a copy of ``optimizer`` that steps its weights; afterwards all is as before.

    The optimizer itself, its state and whoever listens to its steps never hear of it; the rest is :func:`as_before`.

    Cost: one copy of weights, gradients and optimizer state.
    """
    with as_before(model, loss_of, *(g["params"] for g in optimizer.param_groups)):
        yield twin(optimizer)


@contextmanager
def as_before(model: nn.Module, loss_of: Any, *others: Iterable[Tensor]) -> Iterator[None]:
    """Lend ``model`` out, and further weights; afterwards all is as before.

    Weights, buffers, plain attributes, ``.grad`` (the same tensors with the same values) and random generators are back
    bit for bit, also after an error, and the hooks that were hung meanwhile are gone. So is what ``loss_of`` binds by
    itself, and what the modules hold that it names. May be nested: the inner one returns to where the outer one stands.

    Cost: one copy of weights and gradients.
    """
    modules, bound = modules_of(model, loss_of), Bound(places(loss_of, ()))
    weights = list(dict.fromkeys(chain(*(m.parameters() for m in modules), *others)))
    saved, grads = SavedWeights(weights), [(w, w.grad) for w in weights]
    values = SavedWeights(g for _, g in grads if g is not None)
    state = Watch(lambda: modules, lambda: weights).start()
    generators, hooks = Randomness({w.device for w in weights}), list(_hooks(model))
    try:
        for weight in weights:
            weight.grad = None
        yield
    finally:
        saved.back()
        state.back()
        bound.done()
        for weight, grad in grads:
            weight.grad = grad
        values.back()
        generators.set()
        torch.clear_autocast_cache()
        for hung, before in hooks:
            for key in hung.keys() - before:
                del hung[key]


def modules_of(model: nn.Module, loss_of: Any) -> list[nn.Module]:
    """The model, and modules that the loss names: a teacher, metrics."""
    return [bare(model), *(bare(each) for each in held_by(loss_of) if isinstance(each, nn.Module))]


def _hooks(model: nn.Module) -> Iterator[tuple[dict[int, Any], set[int]]]:
    """The hooks of each module, and the keys of those that hang there now.

    A method hangs some, which go when it does: with the garbage, in the middle of whatever walks through them then.
    """
    for module in model.modules():
        for name, hung in vars(module).items():
            if "_hooks" in name and isinstance(hung, dict):
                yield hung, set(hung)


def twin(optimizer: Optimizer) -> Optimizer:
    """A copy with a state of its own on the very same parameters, to which nobody listens."""
    memo: dict[int, Any] = {id(p): p for g in optimizer.param_groups for p in g["params"]}
    # Not deepcopy(optimizer): that keeps defaults, state and groups alone, and some optimizers hold more. A learning
    # rate scheduler leaves a `step` in the instance that would step the original.
    kept = {k: v for k, v in vars(optimizer).items() if k != "step" and not k.endswith("_hooks")}
    new: Optimizer = object.__new__(type(optimizer))
    new.__dict__.update(copy.deepcopy(kept, memo))
    new.__setstate__({})  # makes empty hooks
    return new


@contextmanager
def same_order(batches: Iterable[Any]) -> Iterator[None]:
    """The generator that a loader draws its order from is put back afterwards (the global one is `untouched`'s)."""
    found = getattr(batches, "generator", None)
    generator = found if isinstance(found, torch.Generator) else torch.Generator()
    state = generator.get_state()
    try:
        yield
    finally:
        generator.set_state(state)


def around(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches again and again; refused where there are none, or an iterator cannot start again."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "batches gave no batch (or no more); expected a list of batches or a loader that can start again"
            )
