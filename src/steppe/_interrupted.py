"""Ctrl-C while torch is imported ends the command `steppe` in one line; programs that import steppe are left alone.

To be imported before torch, which takes seconds: until then `steppe.cli.main`, which sees to it later, has not begun.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType


def _is_command() -> bool:
    """Whether this process is `steppe` or `python -m steppe`; of the latter `sys.argv` has no name as yet."""
    name = (sys.argv or [""])[0]
    return bool({"steppe", "-msteppe"} & set(sys.orig_argv)) if name == "-m" else Path(name).stem == "steppe"


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("steppe: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if _is_command() and sys.excepthook is sys.__excepthook__:
    sys.excepthook = _told
