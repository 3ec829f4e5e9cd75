"""What a function takes anew in every pass: the next item of an iterator, a draw from a generator that nobody named."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from steppe._bound import functions_of, named_by
from steppe._randomness import is_generator
from steppe._reach import names_in
from steppe._words import an

_NEXT = frozenset(("next", "__next__"))


def warn_of_what_comes_anew(function: Any, generators: Sequence[Any] | None) -> None:
    """Say that two passes of this function are not of one batch, or draw different numbers.

    Args:
        function: computes the loss, perhaps by functions that it holds or names.
        generators: those that are named; None: the passes are to draw apart.
    """
    for each in functions_of(function):
        there = named_by(each)
        if not _NEXT.isdisjoint(names_in(each.__code__)):
            _warn_of_iterators(there)
        if generators is not None:
            _warn_of_generators(there, generators)


def _warn_of_iterators(there: list[Any]) -> None:
    for thing in there:
        if isinstance(thing, Iterator) and not isinstance(thing, itertools.count):
            warnings.warn(
                f"the function calls next() on {an(type(thing).__name__)}: it is called once for each pass, so that g "
                "and the gradient at w + eps are of two batches; expected the batch taken before: "
                "batch = next(batches); sharp.backward(loss_of, batch)",
                stacklevel=9,
            )


def _warn_of_generators(there: list[Any], named: Sequence[Any]) -> None:
    for thing in there:
        if is_generator(thing) and not any(thing is one for one in (*named, torch.default_generator)):
            warnings.warn(
                f"the function reads {an(type(thing).__name__)} that the method does not know: each pass of a step "
                "draws other numbers from it; expected it named, generators=[...], or same_dropout=False",
                stacklevel=9,
            )
