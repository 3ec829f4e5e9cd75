"""The random generators that a forward pass draws from: where they stand, and back."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

Put = Callable[[], Any]


class Randomness:
    """Where the generators stand: torch's on every device in use, Python's, NumPy's where it is loaded, and named ones.

    Args:
        devices: whose generators of torch are in use; the CPU's always is.
        named: further generators, of torch, NumPy or Python.
        shared: whether the global generators belong to it; if not, only the named ones.
    """

    def __init__(self, devices: Iterable[torch.device], named: Sequence[Any] = (), shared: bool = True) -> None:
        self._puts: list[Put] = [_keep(generator) for generator in named]
        if shared:
            self._puts += [_keep(random), _keep_numpy(), *(_keep_device(d) for d in devices if _has_generator(d))]
            cpu = torch.get_rng_state()
            self._puts.append(lambda: torch.set_rng_state(cpu))

    def set(self) -> None:
        """Make the generators continue from here."""
        for put in self._puts:
            put()


def check_generators(generators: Any) -> tuple[Any, ...]:
    """The named generators as a tuple; refuses what has no state that could be put back."""
    if not isinstance(generators, Sequence) or isinstance(generators, (str, bytes)):
        raise TypeError(f"generators={generators!r} was given; expected a list of {_EXPECTED}")
    for generator in generators:
        try:
            _keep(generator)
        except (AttributeError, NotImplementedError, TypeError):
            raise TypeError(
                f"generators holds {generator!r}; expected {_EXPECTED}, whose state can be put back (the global ones "
                "of torch, Python and NumPy are kept without being named)"
            ) from None
    return tuple(generators)


_EXPECTED = "torch.Generator, numpy.random.Generator, numpy.random.RandomState or random.Random objects"


def _keep(generator: Any) -> Put:
    """Where a generator stands, as the call that brings it back; kinds are told apart by what they can do."""
    if isinstance(generator, torch.Generator):
        at = generator.get_state()
        return lambda: generator.set_state(at)
    if generator is random or isinstance(generator, random.Random):
        here = generator.getstate()
        return lambda: generator.setstate(here)
    if hasattr(generator, "bit_generator"):  # numpy.random.Generator, without importing NumPy
        bits, state = generator.bit_generator, generator.bit_generator.state
        return lambda: setattr(bits, "state", state)
    old = generator.get_state(legacy=False)  # numpy.random.RandomState
    return lambda: generator.set_state(old)


def _keep_numpy() -> Put:
    numpy = sys.modules.get("numpy.random")
    return (lambda: None) if numpy is None else _keep(numpy.mtrand._rand)


def _keep_device(device: torch.device) -> Put:
    module = torch.get_device_module(device)
    state = module.get_rng_state(device)
    return lambda: module.set_rng_state(state, device)


def _has_generator(device: torch.device) -> bool:
    return device.type not in ("cpu", "meta") and hasattr(torch.get_device_module(device), "get_rng_state")
