"""A clock of which every module that is called takes one second: exact ratios, whatever else the machine does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch.nn.modules.module import register_module_forward_hook

from steppe._command import meter


@contextmanager
def counting_modules() -> Iterator[None]:
    """Steps are timed by it."""
    called: list[None] = []

    def seconds(device: str, work: Callable[[], Any]) -> tuple[float, float]:
        before = len(called)
        work()
        return len(called) - before, len(called) - before

    hook = register_module_forward_hook(lambda *_: called.append(None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "taken", seconds)
        try:
            yield
        finally:
            hook.remove()
