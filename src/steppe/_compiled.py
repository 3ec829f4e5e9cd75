"""Functions that torch.compile must not look into, at no cost where nothing is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, at which a step that is compiled as a whole breaks its graph.

    Torch's own way asks for its compiler at every call, and loads it at the first: seconds that most never need.
    """
    apart: Callable[P, R] = _disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (apart if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return call
