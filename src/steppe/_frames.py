"""Calls that are under way, as Python's stack has them."""

from __future__ import annotations

import sys
from types import FrameType


def running(frame: FrameType | None) -> bool:
    """Whether a call is still under way; one that was broken off may leave its frame with the error's traceback."""
    at: FrameType | None = sys._getframe()
    while at is not None and at is not frame:
        at = at.f_back
    return frame is not None and at is frame


def in_checkpoint() -> bool:
    """Whether a forward without a graph is one that will be run again with it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "torch.utils.checkpoint":
        frame = frame.f_back
    return frame is not None
