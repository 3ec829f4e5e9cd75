"""The random generators that a forward pass draws from: where they stand, and back."""

from __future__ import annotations

import ctypes
import functools
import random
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch


class Source(NamedTuple):
    """A generator: how to read where it stands, how to bring it back, and whether two readings are of one place."""

    read: Callable[[], Any]
    put: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]


class Randomness:
    """Where the generators stand: torch's on every device in use, Python's, NumPy's where it is loaded, and named ones.

    Args:
        devices: whose generators of torch are in use; the CPU's always is.
        named: further generators, of torch, NumPy or Python.
        shared: whether the global generators belong to it; if not, only the named ones.
    """

    def __init__(self, devices: Iterable[torch.device], named: Sequence[Any] = (), shared: bool = True) -> None:
        self._sources = [_source(generator) for generator in named]
        if shared:
            numpy = of_numpy()
            self._sources += [_python()] if numpy is None else [_python(), _of_numpy(numpy)]
            self._sources += [*(_of_device(d) for d in devices if _has_generator(d)), _CPU]
        self._at = [source.read() for source in self._sources]

    def now(self) -> Randomness:
        """Where the same generators stand now."""
        new = object.__new__(Randomness)
        new._sources, new._at = self._sources, [source.read() for source in self._sources]
        return new

    def stand(self) -> bool:
        """Whether none of them has moved."""
        pairs = ((source.same, at, source.read()) for source, at in zip(self._sources, self._at, strict=True))
        return all(torch.equal(at, now) if isinstance(at, torch.Tensor) else same(at, now) for same, at, now in pairs)

    def set(self, there: Randomness | None = None) -> None:
        """Make the generators continue from here.

        ``there``: where they are known to stand, so that those that have not moved can be left alone.
        """
        if there is None:
            for source, at in zip(self._sources, self._at, strict=True):
                source.put(at)
            return
        for source, at, other in zip(self._sources, self._at, there._at, strict=True):
            if at is not other and not source.same(at, other):
                source.put(at)


def check_generators(generators: Any) -> tuple[Any, ...]:
    """The named generators as a tuple; refuses what has no state that could be put back."""
    if not isinstance(generators, Sequence) or isinstance(generators, (str, bytes)):
        raise TypeError(f"generators={generators!r} was given; expected a list of {_EXPECTED}")
    for generator in generators:
        try:
            _source(generator).read()
        except (AttributeError, NotImplementedError, TypeError):
            raise TypeError(
                f"generators holds {generator!r}; expected {_EXPECTED}, whose state can be put back (the global ones "
                "of torch, Python and NumPy are kept without being named)"
            ) from None
    return tuple(generators)


def is_generator(thing: Any) -> bool:
    """Whether it is one of those that can be named."""
    if isinstance(thing, (torch.Generator, random.Random)):
        return not isinstance(thing, random.SystemRandom)  # which has no state
    kind = type(thing)
    return kind.__module__.startswith("numpy.random") and kind.__name__ in ("Generator", "RandomState")


_EXPECTED = "torch.Generator, numpy.random.Generator, numpy.random.RandomState or random.Random objects"


def _source(generator: Any) -> Source:
    """A generator of any kind; kinds are told apart by what they can do."""
    if isinstance(generator, torch.Generator):
        return Source(generator.get_state, generator.set_state, torch.equal)
    if generator is random or isinstance(generator, random.Random):
        return Source(generator.getstate, generator.setstate, _same_place)
    if hasattr(generator, "bit_generator"):  # numpy.random.Generator, without importing NumPy
        bits = generator.bit_generator
        return Source(lambda: bits.state, lambda state: setattr(bits, "state", state), _never)
    return Source(  # numpy.random.RandomState
        functools.partial(generator.get_state, legacy=False), generator.set_state, _same_words
    )


def _same_place(a: Any, b: Any) -> bool:
    """Of Python's: the place within a block of numbers, the block's first ones and the kept normal variate.

    Drawing moves the place, or makes a new block; so does a seed.
    """
    if type(a) is not tuple or len(a) != 3 or type(a[1]) is not tuple or len(a[1]) != _BLOCK:
        return False  # a class of the user's own
    if a is b:
        return True
    words, others = a[1], b[1]
    return bool(words[-1] == others[-1] and a[2] == b[2] and words[:_FIRST] == others[:_FIRST])


_BLOCK, _FIRST = 625, 9  # Mersenne Twister's numbers and the place; so many tell a block


def _same_words(a: Any, b: Any) -> bool:
    """The same of NumPy's."""
    if a.get("bit_generator") != "MT19937":
        return False
    if a is b:
        return True
    one, other = a["state"], b["state"]
    normal = a.get("has_gauss") == b.get("has_gauss") and a.get("gauss") == b.get("gauss")
    return bool(normal and one["pos"] == other["pos"] and one["key"].tobytes() == other["key"].tobytes())


def _never(a: Any, b: Any) -> bool:
    return False


class _Twister:
    """A Mersenne Twister whose state takes longer to read and write than all others: done only where it has moved.

    Its memory tells that: the words, and the normal variate that may be kept for the next call.

    Args:
        words: what lies in its memory; nothing where that is not known.
        get: its state. put: sets it. same: whether two states are of one place.
    """

    def __init__(
        self, words: Callable[[], bytes], get: Callable[[], Any], put: Any, same: Callable[[Any, Any], bool]
    ) -> None:
        self._words, self._get, self._put, self._same = words, get, put, same
        self._latest, self._known = b"", None

    def read(self) -> Any:
        """The state, not to be written on."""
        words = self._words()
        if not words or words != self._latest:
            self._latest, self._known = words, self._get()
        return self._known

    def put(self, state: Any) -> None:
        """Continue from a state."""
        known = self.read()
        if known is not state and not self._same(state, known):
            self._put(state)
            self._latest = b""


@functools.cache
def _python() -> Source:
    """Python's global generator."""
    generator: Any = random.getstate.__self__  # type: ignore[attr-defined]
    twister = _Twister(_python_words(generator), random.getstate, random.setstate, _same_place)
    return Source(twister.read, twister.put, _same_place)


def _python_words(generator: Any) -> Callable[[], bytes]:
    """Reads place and numbers where CPython keeps them, behind an object's head; nothing if they are not there.

    Nor while a normal variate is kept for the next call, which lies elsewhere.
    """
    size, head = 4 * _BLOCK, object.__basicsize__
    if sys.implementation.name != "cpython" or type(generator).__basicsize__ < head + size:
        return bytes
    memory = _memory(id(generator) + head, size)
    place, *numbers = struct.unpack(f"={_BLOCK}I", memory.raw)
    if (*numbers, place) != generator.getstate()[1]:
        return bytes
    return lambda: memory.raw if generator.gauss_next is None else b""


def of_numpy() -> Any:
    """NumPy's global generator, where NumPy is loaded."""
    numpy = sys.modules.get("numpy.random")
    return None if numpy is None else numpy.mtrand._rand


@functools.cache
def _of_numpy(generator: Any) -> Source:
    """NumPy's global generator."""
    get = functools.partial(generator.get_state, legacy=False)
    twister = _Twister(_NumpyWords(generator), get, generator.set_state, _same_words)
    return Source(twister.read, twister.put, _same_words)


class _NumpyWords:
    """Reads a generator's numbers at the address that NumPy tells, as long as it stands on the same bit generator.

    And the object itself, in which the normal variate lies that is kept for the next call.
    """

    def __init__(self, generator: Any) -> None:
        self._generator, self._bits = generator, None
        self._told = _keeps_its_variate(generator)
        self._numbers: Any = None
        self._body: Any = _body(generator) if self._told else None

    def __call__(self) -> bytes:
        bits: Any = getattr(self._generator, "_bit_generator", None)
        if bits is not self._bits:
            twister = self._told and type(bits).__name__ == "MT19937"
            self._bits, self._numbers = bits, _memory(bits.ctypes.state_address, 4 * _BLOCK) if twister else None
        return self._numbers.raw + self._body.raw if self._numbers is not None else b""


def _memory(address: int, size: int) -> Any:
    """What lies there, read anew each time that its ``raw`` is asked for."""
    return (ctypes.c_char * size).from_address(address)


def _body(thing: Any) -> Any:
    """An object's memory behind its head, as CPython lays it out."""
    head = object.__basicsize__
    return _memory(id(thing) + head, type(thing).__basicsize__ - head)


def _keeps_its_variate(generator: Any) -> bool:
    """Whether the body of a generator of this kind tells of it: of two normal numbers the second is kept."""
    if sys.implementation.name != "cpython":
        return False
    other = type(generator)(0)
    other.standard_normal()
    kept = _body(other).raw
    other.standard_normal()
    return bool(kept != _body(other).raw)


def _of_device(device: torch.device) -> Source:
    module = torch.get_device_module(device)
    return Source(lambda: module.get_rng_state(device), lambda state: module.set_rng_state(state, device), torch.equal)


def _has_generator(device: torch.device) -> bool:
    return device.type not in ("cpu", "meta") and hasattr(torch.get_device_module(device), "get_rng_state")


_CPU = Source(torch.default_generator.get_state, torch.default_generator.set_state, _never)  # put sooner than compared
