"""What a loss runs through beside the model: a discriminator, a loss with parameters, a teacher that nobody named.

Its leaves are found in the graph of a first pass, its modules as they run; both are looked for in the first steps and
whenever a graph of another size, or a loss of another code or about other modules, comes along: on the host, in some
microseconds a step once they are known. Their gradient is then the last pass's alone, and their state moves once.
"""

from __future__ import annotations

import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from steppe._bound import held_by, writes
from steppe._compiled import in_compiled_step
from steppe._frames import in_checkpoint, running
from steppe._gradients import Gradients
from steppe._inputs import Inputs
from steppe._parameters import bare, layers
from steppe._randomness import Randomness
from steppe._reach import anything_compiled, is_compiled, reached
from steppe._state import State, Watch
from steppe._words import an

FRESH = 3
"""So many first passes are looked at after anything new."""

MOST = 4096
"""Kinds of graphs that are remembered."""

_COUNT: Callable[[], int] | None = getattr(torch._C._autograd, "_get_sequence_nr", None)


class Held:
    """The state of modules outside, from the beginning of a pass or, with ``begun=False``, from :meth:`again` on.

    ``draws``: whether their generators belong to it.
    """

    def __init__(self, watch: Watch, begun: bool = True, draws: bool = True) -> None:
        self._watch = watch
        self._start = watch.start() if begun else None
        self._left: State | None = None
        generators = watch.named((), draws and begun)
        self._draws = [Randomness((), generators, shared=False)] if generators else []

    def again(self) -> None:
        """Begin the second pass where the first began."""
        if self._start is not None:
            self._start.learn()
        self._left = self._watch.now()
        if self._start is not None:
            self._start.back()
        for start in list(self._draws):
            self._draws = [start.now()]
            start.set()

    def done(self) -> None:
        """Put back what the first pass left or, where there was none, what was there."""
        state = self._start if self._left is None else self._left
        if state is not None:
            state.back()
        for draws in self._draws:
            draws.set()
        self._watch.forget()


class Outside:
    """Finds modules and leaves that are not the model's.

    Args:
        model: as it was given, with its wrappers.
        gradients: are told of leaves.
        trained: the model's parameters that are no state.
    """

    def __init__(self, model: nn.Module, gradients: Gradients, trained: Callable[[], list[Tensor]]) -> None:
        self._model, self._gradients, self._trained = model, gradients, trained
        self._known: list[weakref.ref[nn.Module]] = []
        self._watch = Watch(self.modules, self._no_state)
        self._graphs: set[Any] = set()
        self._fresh = FRESH
        self._first = self._warned = self._doubt = self._writes = False
        self._draws = True
        self._count = 0  # of parameters outside, in the latest first pass
        self._joined: list[Held] = []
        self._met: dict[int, nn.Module] = {}  # kept while a pass runs, so that no id comes back
        self._seen: set[int] = set()
        self._hook: RemovableHandle | None = None
        self._function: Any = None  # whose graph is looked at, within a backward
        self._goes_on: Callable[[], bool] = bool  # whether passes are under way: an interrupt may leave the hook
        self._thread = 0

    def modules(self) -> list[nn.Module]:
        """Those known that have a state which a pass may move."""
        if not self._known:
            return []
        found = [module for ref in self._known if (module := ref()) is not None]
        if len(found) < len(self._known):
            self._known = [weakref.ref(module) for module in found]
        return found

    def held(self, begun: bool = True) -> list[Held]:
        """Their state as it is now."""
        return [Held(self._watch, begun, self._draws)] if self.modules() else []

    def watched(self, loss_of: Callable[..., Any], inputs: Inputs, draws: bool) -> Callable[..., Any]:
        """``loss_of``, whose graph is looked at in passes that another one follows.

        ``inputs``: of what it computes. ``draws``: whether both passes draw the same.
        """
        self._draws, self._goes_on = draws, partial(running, sys._getframe(1))
        if self._gradients.parameters.sharded:
            return loss_of

        self._function = inputs.function

        def watched(*arguments: Any) -> Any:
            if not self._first:
                return loss_of(*arguments)
            before = _COUNT() if _COUNT is not None else 0
            loss = loss_of(*arguments)
            self._inspect(loss, _COUNT() - before if _COUNT is not None else None, inputs)
            return loss

        return watched

    def over(self) -> None:
        """The passes of a backward are over."""
        self._function, self._goes_on = None, bool

    def open_first(self) -> None:
        """A pass begins that another may follow."""
        self._first, self._joined = True, []
        if self._fresh:
            self._arm()

    def close_first(self) -> list[Held]:
        """It is over; what was met in it for the first time."""
        self._first = False
        try:
            self._doubt = self._missed()
        finally:
            if self._hook is not None or self._met:
                self._disarm()
        self._fresh = max(0, self._fresh - 1)
        joined, self._joined = self._joined, []
        return joined

    @property
    def met(self) -> bool:
        """Whether anything new was met in the first pass."""
        return self._fresh >= FRESH - 1

    @contextmanager
    def second(self) -> Iterator[None]:
        """The last pass, where something new was met in the first: modules that its graph told of too late are held."""
        self._joined = []
        try:
            self._arm()
            yield
        finally:
            self._close()

    def open_phase(self, goes_on: Callable[[], bool]) -> None:
        """A host runs the second pass: its modules are held, and one warning says what cannot be put right."""
        self._joined, self._goes_on = [], goes_on
        if self._fresh:
            self._fresh -= 1
            self._arm()

    def close_phase(self) -> None:
        """The host's pass is over."""
        if self._hook is None:
            return
        there = [m for m in self._met.values() if any(p.grad is not None for p in self._leaves(m))]
        self._close()
        if there and not self._warned:
            self._warned = True
            warnings.warn(
                f"the loss runs through {an(type(there[0]).__name__)} that is trainable and not in the model: after "
                "two passes that steppe does not run itself its .grad is the sum of both passes; pass one module that "
                f"owns all, such as nn.ModuleList([model, {type(there[0]).__name__.lower()}]), as the model, or use "
                "backward()",
                stacklevel=5,
            )

    def _close(self) -> None:
        self._disarm()
        for module in self._joined:
            module.done()
        self._joined = []

    def _inspect(self, loss: Any, size: int | None, inputs: Inputs) -> None:
        if not isinstance(loss, Tensor) or loss.grad_fn is None:
            return
        about = _about(inputs.function, inputs.read())
        if size is None or (size, about) not in self._graphs:
            self._fresh = FRESH
        elif not self._fresh and not self._doubt:
            return
        if len(self._graphs) >= MOST:
            self._graphs.clear()
        self._graphs.add((size, about))
        if self._gradients.meet(_leaves(loss.grad_fn)):
            self._fresh = FRESH

    def _missed(self) -> bool:
        """Whether a known parameter is gone, or the pass did not reach it: another may have taken its place."""
        if not (there := self._gradients.outside()) and not self._count:
            return False
        there = [p for p in there if isinstance(p, nn.Parameter)]
        fewer, self._count = len(there) < self._count, len(there)
        return fewer or any(p.grad is None for p in there)

    # Modules, as they run

    def _arm(self) -> None:
        self._disarm()  # what an interrupted pass left
        own = [*bare(self._model).modules(), *layers(self._model)]
        self._met, self._thread = {}, threading.get_ident()
        self._seen = {id(m) for m in own}
        if anything_compiled():
            there = [*layers(self._model), *reached(self._function)]
            # A global hook is part of what torch.compile traces: the model would be compiled twice.
            if in_compiled_step() or any(map(is_compiled, there)):
                for module in there:
                    if isinstance(module, nn.Module) and id(module) not in self._seen:
                        self._meet(module)
                return
        me, handles = weakref.ref(self), list[RemovableHandle]()

        def hook(module: nn.Module, args: Any) -> None:
            if torch.compiler.is_compiling() or _transformed():
                return
            it = me()
            if it is not None and threading.get_ident() != it._thread:
                return
            if it is None or not it._goes_on():  # an interrupt of the lines that clean up has left it
                for handle in handles:
                    handle.remove()
            elif id(module) not in it._seen:
                it._meet(module)

        self._hook = register_module_forward_pre_hook(hook)
        handles.append(self._hook)
        self._meet_named()

    def _meet_named(self) -> None:
        """Metrics that are updated, and never run, and a teacher that may be written before it runs."""
        self._writes = writes(self._function)
        for thing in held_by(self._function):
            if not isinstance(thing, nn.Module) or id(thing) in self._seen:
                continue
            if not self._leaves(thing):
                self._meet(thing)
            elif self._writes and _is_apart(bare(thing)):
                self._hold(bare(thing))

    def _disarm(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._met = None, {}

    def _meet(self, module: nn.Module) -> None:
        root = bare(module)
        inner = list(root.modules())
        mine = id(root) in self._seen  # a wrapper that the method was not given
        self._seen |= {id(m) for m in [*layers(module), *inner]}
        if mine or not _is_apart(root):
            return
        self._met[id(root)] = root
        teacher = self._writes and not torch.is_grad_enabled() and not in_checkpoint()
        if self._first and not teacher:
            self._gradients.meet(self._leaves(root))
        if self._writes or any(m.training for m in inner):  # one that is evaluated moves by the function's hand alone
            self._hold(root)

    def _hold(self, root: nn.Module) -> None:
        """Hold its state from now on."""
        if any(ref() is root for ref in self._known):
            return
        watch = Watch(lambda: [root], self._no_state)
        if not watch.bindings().empty:  # most losses have no state at all
            self._joined.append(Held(watch, draws=self._draws))
            self._known.append(weakref.ref(root))

    def _no_state(self) -> list[Tensor]:
        return self._trained() + self._gradients.outside()

    def _leaves(self, module: nn.Module) -> list[Tensor]:
        own = {id(e.param) for e in self._gradients.parameters.entries}
        return [p for p in module.parameters() if p.requires_grad and id(p) not in own]

    def __getstate__(self) -> dict[str, Any]:
        """Copies look anew: what is known is of these very modules."""
        return {"_model": self._model, "_gradients": self._gradients, "_trained": self._trained}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As when it was made."""
        self.__init__(state["_model"], state["_gradients"], state["_trained"])  # type: ignore[misc]


def _is_apart(root: nn.Module) -> bool:
    """Whether its tensors are its own, and to be looked at."""
    sharded = any(hasattr(m, "_get_fsdp_state") for m in root.modules())
    return not sharded and not isinstance(root, torch.jit.ScriptModule)


def _leaves(root: Any) -> list[Tensor]:
    """The tensors that a backward from here would add a gradient to."""
    seen, waiting, found = {root}, [root], list[Tensor]()
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                leaf = getattr(node, "variable", None)
                (waiting if leaf is None else found).append(node if leaf is None else leaf)
    return found


def _about(loss_of: Any, read: list[Any]) -> Any:
    """The code of a function and the modules and parameters among what it holds or names."""
    about = [getattr(loss_of, "__code__", type(loss_of))]
    for held in read:
        # Asking whether something is a Parameter calls a function of torch's.
        if isinstance(held, nn.Module) or (isinstance(held, Tensor) and isinstance(held, nn.Parameter)):
            about.append(id(held))
    return tuple(about)


def _transformed() -> bool:
    """Whether a transform of ``torch.func`` runs, under which a module's tensors are not to be looked at."""
    peek = getattr(torch._C._functorch, "peek_interpreter_stack", None)
    return peek is not None and peek() is not None
