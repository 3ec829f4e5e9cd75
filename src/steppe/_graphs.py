"""Whether the loss of a pass was computed in that pass: what was computed before it does not see w + eps.

Torch notices the commonest cases in words of its own (a graph a second time) or, with ``retain_graph``, not at all. The
graphs are looked at once for each function: the nodes of two passes have nothing in common but the parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from torch import Tensor

from steppe._nested import children
from steppe._reach import closed_over_by, names_in

OUTSIDE = (
    "the loss hangs on something that was computed before the function was called (logits, features), which would be "
    "the same at the perturbed weights; expected the forward inside the function: "
    "sharp.backward(lambda: criterion(model(x), y))"
)
BY_ITSELF = (
    "the function called .backward() by itself; expected one that computes the loss and returns it: "
    "sharp.backward(lambda: criterion(model(x), y)) runs the backward, once for each pass"
)
USED_UP = (
    "the graph of the loss has been used up before this backward; expected a function that computes everything anew, "
    "the forward too, and does not call .backward(): sharp.backward(lambda: criterion(model(x), y))"
)
SECOND_ORDER = (
    "the gradients came with a graph (create_graph=True), as AdaHessian and Sophia-H want them; the weights move "
    "between the passes, so no Hessian can be taken of it: expected a base optimizer that needs gradients alone"
)
NO_GRAPH = "does not require grad"
"""What torch says of a derivative under ``no_grad``."""

_TWICE = "backward through the graph a second time"
_MOVED = "modified by an inplace operation"
_FEW = 64  # items of a container that is looked into


def raise_in_our_words(error: RuntimeError, perturbed: bool = False) -> None:
    """Raise what torch's error means where a loss was made elsewhere.

    Any other is the caller's to raise: raised here, its traceback would hold it by this frame, and with it the batch
    until the next collection, where memory may be what was missing.

    ``perturbed``: it was raised in the pass at w + eps.
    """
    if _TWICE in str(error):
        raise RuntimeError(USED_UP) from error
    if perturbed and _MOVED in str(error):
        raise RuntimeError(OUTSIDE) from error


def refuse_second_order(grads: Iterable[Tensor | None]) -> None:
    """Refuse gradients that have a graph."""
    if any(g is not None and g.requires_grad for g in grads):
        raise RuntimeError(SECOND_ORDER)


class Trace:
    """The calls of one function in one ``backward``.

    Args:
        function: computes the loss.
        arguments: what it is called with.
        moved: the parameters that are perturbed.
    """

    def __init__(self, function: Any, arguments: Iterable[Any], moved: list[Tensor]) -> None:
        self._moved, self._before = moved, list[tuple[Tensor | None, int]]()
        self._seen: set[Any] = set()
        for tensor in _tensors([*_free(function), *arguments]):
            self._seen |= _nodes(tensor.grad_fn)

    def begin(self) -> None:
        """A call begins."""
        self._before = self._gradients()

    def end(self, loss: Any) -> None:
        """The call has returned; its backward has not begun.

        Raises:
            RuntimeError: it ran a backward, or part of the loss's graph was there before.
        """
        if not isinstance(loss, Tensor) or loss.grad_fn is None:
            return  # the backward is the host's own affair
        same = (new[0] is old[0] and new[1] == old[1] for new, old in zip(self._gradients(), self._before, strict=True))
        if not all(same):
            raise RuntimeError(BY_ITSELF)
        here = _nodes(loss.grad_fn)
        if self._reach(here & self._seen):
            raise RuntimeError(OUTSIDE)
        self._seen |= here

    def after(self) -> None:
        """The backward is over."""
        refuse_second_order(p.grad for p in self._moved)

    def _gradients(self) -> list[tuple[Tensor | None, int]]:
        return [(p.grad, 0 if p.grad is None else p.grad._version) for p in self._moved]

    def _reach(self, nodes: set[Any]) -> bool:
        """Whether a perturbed parameter lies right behind any of the nodes (with each come all those below it)."""
        mine = {id(p) for p in self._moved}
        below = (each for node in nodes for each, _ in node.next_functions if each is not None)
        return any(id(_leaf(each)) in mine for each in below)


class Tracing:
    """Which functions have been looked at: each once in a step that does not ascend, and once in one that does."""

    def __init__(self) -> None:
        self._known: set[Any] = set()

    def knows(self, function: Any, ascends: bool = False) -> bool:
        """Whether it has been looked at in a step that ascends, or in one that does not."""
        return (code_of(function), ascends) in self._known

    def done(self, function: Any, ascended: bool) -> None:
        """It has passed."""
        self._known.add((code_of(function), ascended))

    def __getstate__(self) -> dict[str, Any]:
        return {"_known": set()}  # code cannot be pickled


def code_of(function: Any) -> Any:
    """What tells functions apart that are made anew in every step."""
    if type(function) is FunctionType:
        return function.__code__
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__code__", None) or type(function)


def _free(function: Any) -> Iterator[Any]:
    """What a function reads besides its arguments, as far as it can be seen."""
    while isinstance(function, functools.partial):
        yield from function.args
        yield from function.keywords.values()
        function = function.func
    yield from closed_over_by(function)
    yield from getattr(function, "__defaults__", None) or ()
    yield from (getattr(function, "__kwdefaults__", None) or {}).values()
    code, known = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    yield from (known[name] for name in (names_in(code) if code else ()) if name in known)


def _tensors(parts: Iterable[Any]) -> Iterator[Tensor]:
    for part in parts:
        below = None if isinstance(part, Tensor) else children(part)
        if isinstance(part, Tensor):
            yield part
        elif below is not None and len(below[1]) <= _FEW:
            yield from _tensors(below[1])


def _nodes(root: Any) -> set[Any]:
    """Every node of a graph but those of the parameters."""
    found: set[Any] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in found or _leaf(node) is not None:
            continue
        found.add(node)
        waiting.extend(below for below, _ in node.next_functions)
    return found


def _leaf(node: Any) -> Any:
    return node.variable if type(node).__name__ == "AccumulateGrad" else None
