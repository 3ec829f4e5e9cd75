"""Which objects a model's modules hold: buffers, parameters and plain attributes, bound again as they were."""

from __future__ import annotations

import functools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from steppe._nested import container_of, is_array, refill
from steppe._randomness import is_generator
from steppe._shards import is_sharded
from steppe._spaces import is_of_users, space_of

LONG = 1024
"""Lists and dicts of more items are left as they are."""

_KEYED = (dict, OrderedDict, defaultdict, Counter)
_OWN = frozenset(vars(nn.Module()))  # what every module has; `training` is among them
_ATOMS = frozenset((int, float, bool, str, type(None), bytes, type, torch.dtype, torch.device, torch.Size))
WRITABLE = (Tensor, nn.Parameter)

Found = tuple[Tensor, nn.Module, str, bool]
"""A tensor that a forward may write, the module and the name where it was found, and whether it is a parameter."""


class Bindings:
    """What is bound where, over all modules, at the time this is made.

    Args:
        roots: modules, whose submodules and hidden modules (in plain attributes) belong to it.
        trained: parameters that are no state.
        sharded: leave parameters alone, as others exchange them within a pass.
    """

    def __init__(self, roots: Iterable[nn.Module], trained: Iterable[Tensor], sharded: bool) -> None:
        self.tensors: list[Found] = []
        self.generators: list[Any] = []  # of the modules' own
        self._attributes: list[dict[str, Any]] = []  # of modules; then, by name: buffers, parameters, submodules, dicts
        self._keyed: list[dict[Any, Any]] = []
        self._listed: list[Any] = []
        self._waiting: list[nn.Module | None] = list(roots)
        self._seen: set[int] = set()
        self._walk({id(p) for p in trained}, sharded)
        self._kept = (
            [dict(d) for d in self._attributes],
            [dict(d) for d in self._keyed],
            [list(x) for x in self._listed],
        )
        # Live: made once, they show what is bound; at the speed of C, as every step that ascends asks thrice.
        self._live = [d.values() for d in chain(self._attributes, self._keyed)] + self._listed
        self._flat = list(chain.from_iterable(self._live))

    @property
    def empty(self) -> bool:
        """Whether nothing could be bound or written."""
        return not (self.tensors or self._attributes or self._keyed or self._listed)

    def hold(self) -> bool:
        """Whether everything is bound as it was."""
        values = list(chain.from_iterable(self._live))
        return len(values) == len(self._flat) and all(map(is_, values, self._flat))

    def back(self) -> None:
        """Bind everything as it was; modules that were added stay."""
        attributes, keyed, listed = self._kept
        for own, kept in zip(self._attributes, attributes, strict=True):
            _rebind(own, kept)
        for container, content in [*zip(self._keyed, keyed, strict=True), *zip(self._listed, listed, strict=True)]:
            refill(container, content)

    def _walk(self, trained: set[int], sharded: bool) -> None:
        while self._waiting:
            module = self._waiting.pop()
            if module is None or id(module) in self._seen:
                continue
            self._seen.add(id(module))
            self._waiting.extend(module._modules.values())
            kind: Any = type(module)
            free = has_attributes(kind) or bool(module._forward_hooks or module._forward_pre_hooks)
            self._note(module, module._buffers, set(), free)
            if not sharded:
                self._note(module, module._parameters, trained, free)
            if free:
                self._attributes.append(vars(module))
                for name, value in vars(module).items():
                    if type(value) not in _ATOMS and name not in _OWN:
                        self._look_into(value, module, name)

    def _note(self, module: nn.Module, tensors: Any, trained: set[int], free: bool) -> None:
        # A scripted module shows something else than a dict, which cannot be bound anew.
        if (tensors or free) and type(tensors) in _KEYED:
            self._keyed.append(tensors)
        for name, tensor in tensors.items():
            if tensor is not None and id(tensor) not in trained:
                self._see(tensor, module, name, isinstance(tensor, nn.Parameter))

    def _look_into(self, value: Any, module: nn.Module, name: str) -> None:
        kind: Any = type(value)
        if isinstance(value, Tensor):
            self._see(value, module, name, False)
        elif isinstance(value, nn.Module):
            self._waiting.append(value)  # a teacher that was hidden from state_dict
        elif (container := container_of(kind)) is not None:
            self._look_within(value, issubclass(container, dict), module, name)
        elif is_array(value) and (over := _over(value)) is not None:
            self._see(over, module, name, False)
        elif is_generator(value) and value is not torch.default_generator:
            self.generators.append(value)
        if is_of_users(kind) and (there := space_of(value)) is not None:
            self._look_within(there, True, module, name)  # a memory bank of one's own class

    def _look_within(self, value: Any, keyed: bool, module: nn.Module, name: str) -> None:
        if len(value) > LONG or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if not isinstance(value, tuple):
            (self._keyed if keyed else self._listed).append(value)
        for item in value.values() if keyed else value:
            if type(item) not in _ATOMS:
                self._look_into(item, module, name)

    def _see(self, tensor: Tensor, module: nn.Module, name: str, parameter: bool) -> None:
        if id(tensor) in self._seen or (tensor.requires_grad and not parameter):
            return  # what has a graph behind it is bound anew, never written
        if (type(tensor) in WRITABLE and tensor.layout is torch.strided and not tensor.is_meta) or is_sharded(tensor):
            self._seen.add(id(tensor))
            self.tensors.append((tensor, module, name, parameter))


@functools.lru_cache(maxsize=4096)
def has_attributes(kind: Any) -> bool:
    """Whether forward is anybody's but torch's own, whose layers keep what they move in buffers."""
    return not all(c is object or c.__module__.startswith("torch.nn.") for c in kind.__mro__)


def _over(array: Any) -> Tensor | None:
    """A tensor over the same numbers, where torch has one."""
    try:
        return torch.from_numpy(array) if array.flags.writeable else None
    except (AttributeError, TypeError, ValueError):
        return None


def _rebind(own: dict[str, Any], kept: dict[str, Any]) -> None:
    if len(own) == len(kept) and all(map(is_, own.values(), kept.values())):
        return
    for name in [n for n in own if n not in kept and n not in _OWN]:
        del own[name]
    own.update({n: v for n, v in kept.items() if n not in _OWN})
