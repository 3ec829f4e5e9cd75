"""What must be as it was: the weights, the running statistics, the dropout masks, and who may look meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from steppe._algebra import copy_
from steppe._shards import local

BACKUPS = ("device", "host")


class SavedWeights:
    """A copy of weights that goes back into the same storage, bit for bit.

    Args:
        weights: their local pieces are copied.
        backup: where the copy lies. ``"device"``: beside the weights; ``"host"``: in the host's memory, pinned where
            the weights are on a CUDA device, so that both ways are queued on the stream and nobody waits.
    """

    @torch.no_grad()
    def __init__(self, weights: Iterable[Tensor], backup: str = "device") -> None:
        self._weights = local(weights)
        self.copies = [_room_for(w, backup) for w in self._weights]
        copy_(self.copies, self._weights)

    @torch.no_grad()
    def back(self) -> None:
        """Copy back; by copy and never by subtraction, so that no rounding and no inf or NaN stays."""
        copy_(self._weights, self.copies)


def _room_for(weight: Tensor, backup: str) -> Tensor:
    if backup == "device":
        return torch.empty_like(weight)
    return torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)


class Randomness:
    """The state of the random generators that a forward pass draws from (torch on every device in use, Python)."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._python = random.getstate()
        self._cpu = torch.get_rng_state()
        self._others = [(d, torch.get_device_module(d).get_rng_state(d)) for d in devices if _has_generator(d)]

    def set(self) -> None:
        """Make the generators continue from here."""
        random.setstate(self._python)
        torch.set_rng_state(self._cpu)
        for device, state in self._others:
            torch.get_device_module(device).set_rng_state(state, device)


def _has_generator(device: torch.device) -> bool:
    return device.type not in ("cpu", "meta") and hasattr(torch.get_device_module(device), "get_rng_state")


class Statistics:
    """Copies of buffers as they are now, to be put back: same objects, same values."""

    @torch.no_grad()
    def __init__(self, buffers: Iterable[tuple[nn.Module, str]]) -> None:
        self._kept = [(m, name, m._buffers.get(name)) for m, name in buffers]
        self._there = [b for _, _, b in self._kept if b is not None]
        self._copies = [torch.empty_like(b) for b in self._there]
        copy_(self._copies, self._there)

    @torch.no_grad()
    def back(self) -> None:
        """Put every buffer back."""
        for module, name, buffer in self._kept:
            module._buffers[name] = buffer
        copy_(self._there, self._copies)


def buffers_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every buffer of the modules in training mode."""
    # By hand, as every step that ascends asks twice: model.modules() also builds every name, which takes twice as long.
    found: list[tuple[nn.Module, str]] = []
    seen: set[nn.Module] = set()
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is None or module in seen:
            continue
        seen.add(module)
        waiting.extend(module._modules.values())
        if module.training:
            found += [(module, name) for name in module._buffers]
    return found


class Replay:
    """Makes a second pass see what the first saw: the same masks, and running statistics that do not move again.

    Which buffers are running statistics is not guessed from layer types: every floating-point buffer of a module in
    training mode is put back, and every other one that the first pass changed, rebound or registered.
    """

    def __init__(self, model: nn.Module, masks: bool, devices: set[torch.device]) -> None:
        self._model, self._masks, self._devices = model, masks, devices
        self._before = Randomness(devices) if masks else None
        self._after: Randomness | None = None
        self._versions = {(m, n): _version(m, n) for m, n in buffers_of(model)}
        self._statistics: Statistics | None = None

    def rewind(self) -> None:
        """Start the masks again from the first pass's beginning."""
        if self._before is not None:
            self._before.set()

    def again(self) -> None:
        """Begin the second pass."""
        self._after = Randomness(self._devices) if self._masks else None
        self.rewind()
        self._statistics = Statistics(k for k in buffers_of(self._model) if self._may_move(*k))

    def done(self) -> None:
        """End the second pass: generators and statistics are as they were after the first."""
        if self._after is not None:
            self._after.set()
        if self._statistics is not None:
            self._statistics.back()

    def _may_move(self, module: nn.Module, name: str) -> bool:
        buffer, count = _version(module, name)
        if (module, name) not in self._versions or isinstance(module, _NormBase):
            return True
        if buffer is not None and buffer.is_floating_point():
            # Not by version alone: the kernels of batch norms write without counting one.
            return True
        then, earlier = self._versions[module, name]
        return buffer is not then or count != earlier


def _version(module: nn.Module, name: str) -> tuple[Tensor | None, int]:
    # The tensor itself, not its id: an id may come back after the buffer was rebound twice.
    buffer = module._buffers.get(name)
    return buffer, 0 if buffer is None or buffer.is_inference() else buffer._version


class Doors:
    """Refuses to save or load the model or the optimizer while the weights are perturbed."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._register: list[tuple[Callable[[Any], RemovableHandle], str]] = [
            (model.register_state_dict_pre_hook, "save the model"),
            (model.register_load_state_dict_pre_hook, "load the model"),
            (optimizer.register_state_dict_pre_hook, "save the optimizer"),
            (optimizer.register_load_state_dict_pre_hook, "load the optimizer"),
        ]
        self._handles: list[RemovableHandle] = []

    def shut(self) -> None:
        """Refuse from now on; each handle is noted at once, so that an interruption leaves none behind."""
        for hook, what in self._register:
            self._handles += [hook(refusal(what))]

    def open(self) -> None:
        """Allow it again."""
        for handle in self._handles:
            handle.remove()


def refusal(what: str) -> Callable[..., None]:
    """A hook that refuses."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(perturbed_message(what))

    return refuse


def perturbed_message(what: str) -> str:
    """The sentence for anything that must wait until the weights are back."""
    return f"cannot {what} while the weights are perturbed: call restore() first (or leave the perturbed() block)"
