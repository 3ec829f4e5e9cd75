"""A step that torch.compile compiles as a whole: steppe's own work is left alone in it, and the user's is compiled.

What steppe does between the passes is bookkeeping of the host's, with other objects at every step: traced, it would be
compiled in a hundred pieces, and again with each number that counts. So the compiler is off from an entry made by
:func:`untraced` on, and on again, with the step's own backend and settings, in functions of :func:`compiled_again`.
Nothing is loaded where nothing is compiled.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch._C._dynamo import eval_frame

from steppe._reach import Around

P = ParamSpec("P")
R = TypeVar("R")
_REASON = "steppe runs the passes of a step by itself; the functions that it is given are compiled by themselves"


class _Present(threading.local):
    """What the step that called steppe is compiled by."""

    compiler: Any = None


_present = _Present()
# Sets what this thread's frames are compiled by, None for nothing, and returns what it was.
_switch: Callable[[Any], Any] = eval_frame.set_eval_frame


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, an entry into steppe, at which a compiled step has one break of its graph."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        compiler = _switch(None)
        if compiler is None:
            return function(*args, **kwargs)
        outer, _present.compiler = _present.compiler, compiler
        try:
            return function(*args, **kwargs)
        finally:
            _present.compiler = outer
            _switch(compiler)

    _leave_alone(call.__code__)  # type: ignore[attr-defined]
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = _REASON  # type: ignore[attr-defined]
    return call


def compiled_again(function: Callable[P, R]) -> Callable[P, R]:
    """A function of the user's, compiled as the step is that gave it to steppe; as it is where none is compiled."""
    return function if _present.compiler is None else _Again(function, _present.compiler)


class _Again(Around):
    """A function that runs compiled where all around it does not."""

    def __init__(self, users: Any, compiler: Any) -> None:
        super().__init__(users)
        self._compiler = compiler

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _switch(self._compiler)
        try:
            return self.users(*args, **kwargs)
        finally:
            _switch(None)


def in_compiled_step() -> bool:
    """Whether a step that is compiled as a whole has called steppe."""
    return _present.compiler is not None


def _leave_alone(code: Any) -> None:
    """Have frames of this code run as they are; what they call is compiled as ever."""
    if hasattr(eval_frame, "skip_code"):  # torch 2.6
        eval_frame.skip_code(code)
        return
    action = eval_frame._FrameAction
    eval_frame.set_code_exec_strategy(code, eval_frame._FrameExecStrategy(action.SKIP, action.DEFAULT))
