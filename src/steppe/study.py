"""The old name of :mod:`steppe.compare`, for one release."""

from __future__ import annotations

import warnings
from typing import Any

_MOVED = ("Split", "Task")


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'steppe.study' has no attribute {name!r}; it is steppe.compare now")
    from steppe import compare

    message = f"steppe.study is steppe.compare now: write `from steppe.compare import {name}`"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(compare, name)
